"""The signer's folder as one sealed file: its keys, its tenants' keys, and the last checkpoints it signed.

The file is canonical JSON: ``v``, ``kdf`` (scrypt with its cost and salt), ``nonce`` and ``sealed``, the AES-256-GCM of a
canonical JSON object of file names to base64 contents. The associated data binds it to this format and this derivation.

Rules kept here:

- The passphrase comes from a file of its owner's alone. It is not that of the keystore, which stays sealed inside.
- What was written is read back and opened before anybody is told that there is a backup.
- Keys never come back without the last checkpoints that they signed: without these nothing would keep a log from being
  signed anew. Later ones bind as well, where they are known: see ``licet restore``.
- A folder that holds keys is never written to.
"""

from __future__ import annotations

import os
import re
import secrets
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from licet_attestations import canonical
from licet_attestations.errors import FormatError, SignerRefused, SignerUnavailable
from licet_attestations.rpc import decode_bytes, encode_bytes
from licet_attestations.signer import aead
from licet_attestations.signer.files import create_durably, make_private_directory
from licet_attestations.trustroot import TrustRoot

if TYPE_CHECKING:
    from pathlib import Path

_KDF: Final = {"name": "scrypt", "n": 1 << 17, "r": 8, "p": 1}
"""128 MiB and most of a second: the file lies where others may find it, for years."""
_SALT_BYTES: Final = 16
_MAX_BYTES: Final = 256 << 20
_NAME: Final = re.compile(
    r"(?:keystore\.json|trust-root\.json|(?:keys|state)/[a-z~-][a-z0-9~-]*\.json|rotations/[1-9][0-9]{0,3}\.json|tenants/[a-z0-9~-]+\.(?:json|gone))"
)
_PATTERNS: Final = (
    "keystore.json",
    "trust-root.json",
    "keys/*.json",
    "tenants/*.json",
    "tenants/*.gone",
    "state/*.json",
    "rotations/*.json",
)


MIN_PASSPHRASE_BYTES: Final = 12
"""Whoever has the file can try passphrases for years, at about a second each; only a long one outlasts that."""


def back_up(signer_data: Path, target: Path, passphrase: bytes) -> TrustRoot:
    """Seal a signer's folder into a new file, and verify that it can be opened.

    Args:
        signer_data: The folder.
        target: File to make, its owner's alone.
        passphrase: That opens it again.

    Returns:
        The public keys of what was sealed.

    Raises:
        SignerRefused: There are no keys, the file is there already, or the passphrase is too short.
        SignerUnavailable: A file cannot be read or written.
    """
    if len(passphrase) < MIN_PASSPHRASE_BYTES:
        raise SignerRefused(
            f"the passphrase has {len(passphrase)} bytes; it needs at least {MIN_PASSPHRASE_BYTES}, since whoever has the file can"
            " try passphrases for years",
            code="signer.passphrase",
        )
    try:
        files = {
            path.relative_to(signer_data).as_posix(): encode_bytes(path.read_bytes())
            for pattern in _PATTERNS
            for path in sorted(signer_data.glob(pattern))
            if not path.is_symlink()
        }
        if not {"keystore.json", "trust-root.json", "keys/root.json"} <= files.keys():
            raise SignerRefused(f"{signer_data}: there are no keys to back up", code="signer.keystore")
        create_durably(target, _seal(canonical.dumps(files), passphrase))
        opened = _open(target, passphrase)
    except FileExistsError as error:
        raise SignerRefused(f"{target} exists already: name a new file", code="signer.exists") from error
    except OSError as error:
        raise SignerUnavailable(f"{error.filename or target}: {error.strerror}", code="signer.keystore") from error
    if opened != files:
        raise SignerUnavailable(
            f"{target} cannot be read back as it was written: do not rely on it", code="signer.state"
        )
    return TrustRoot.from_json(decode_bytes(opened["trust-root.json"]))


def bring_back(source: Path, signer_data: Path, passphrase: bytes) -> TrustRoot:
    """Make a signer's folder from a sealed file.

    Returns:
        The public keys: the same as before.

    Raises:
        SignerRefused: The folder holds keys already, the passphrase is another, or the file is damaged.
        SignerUnavailable: A file cannot be read or written.
    """
    try:
        files = _open(source, passphrase)
        if (signer_data / "trust-root.json").exists() or any((signer_data / "keys").glob("*.json")):
            raise SignerRefused(f"{signer_data}: there are keys already; they are left alone", code="signer.exists")
        for folder in ("keys", "tenants", "state", "rotations"):
            make_private_directory(signer_data / folder)
        # The trust root last, as when keys are made: without it the folder is no keystore.
        for name in sorted(files, key=lambda name: (name == "trust-root.json", name)):
            create_durably(signer_data / name, decode_bytes(files[name]))
    except OSError as error:
        raise SignerUnavailable(f"{error.filename or source}: {error.strerror}", code="signer.keystore") from error
    return TrustRoot.from_json(decode_bytes(files["trust-root.json"]))


def _derive(passphrase: bytes, kdf: dict[str, Any]) -> bytes:
    if {name: kdf.get(name) for name in _KDF} != _KDF or set(kdf) != {*_KDF, "salt"}:
        raise FormatError("another key derivation")
    scrypt = Scrypt(salt=decode_bytes(kdf["salt"]), length=aead.KEY_BYTES, n=1 << 17, r=8, p=1)
    return scrypt.derive(passphrase)


def _bound(kdf: dict[str, Any]) -> bytes:
    return aead.associated_data("licet-key-backup-v1", canonical.dumps(kdf))


def _seal(plain: bytes, passphrase: bytes) -> bytes:
    kdf: dict[str, Any] = _KDF | {"salt": encode_bytes(secrets.token_bytes(_SALT_BYTES))}
    nonce = secrets.token_bytes(aead.NONCE_BYTES)
    sealed = aead.seal(_derive(passphrase, kdf), nonce, plain, _bound(kdf))
    return canonical.dumps({"v": 1, "kdf": kdf, "nonce": encode_bytes(nonce), "sealed": encode_bytes(sealed)})


def _open(path: Path, passphrase: bytes) -> dict[str, str]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    try:
        match canonical.loads(data, max_bytes=_MAX_BYTES):
            case {"v": 1, "kdf": dict(kdf), "nonce": str(nonce), "sealed": str(sealed)}:
                key = _derive(passphrase, kdf)
                plain = aead.unseal(key, decode_bytes(nonce), decode_bytes(sealed), _bound(kdf))
                files = canonical.loads(plain, max_bytes=_MAX_BYTES)
            case _:
                raise FormatError("it has not the members of one")
    except aead.SealBroken as error:
        raise SignerRefused(
            f"{path}: the passphrase is another, or the file is damaged", code="signer.passphrase"
        ) from error
    except FormatError as error:
        raise SignerRefused(f"{path} is no backup of keys: {error}", code="signer.keystore") from error
    if not isinstance(files, dict) or not all(_NAME.fullmatch(n) and isinstance(v, str) for n, v in files.items()):
        raise SignerRefused(f"{path} is no backup of keys: it names other files", code="signer.keystore")
    return files
