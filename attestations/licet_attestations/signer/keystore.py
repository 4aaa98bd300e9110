"""The keys at rest: files of the signer's user alone, each key with one purpose.

Layout below the data folder::

    keystore.json             how keys are sealed (scrypt, if there is a passphrase)
    keys/<purpose>.json       log (Ed25519); attestation, warrant, model (P-256); root (AES-256, wraps tenant keys)
    tenants/<tenant>.json     tenant key, wrapped by root
    tenants/<tenant>.gone     tombstone of a destroyed tenant key
    rotations/<number>.json   the signed statement of each rotation of a key, from 1
    trust-root.json           the public halves; written last when a keystore is made

Rules kept here:

- A key file that anyone else could read refuses the start. Keys are written to names that must not exist.
- Root wraps tenant keys, tenant keys wrap object keys; each wrapping is bound to its tenant (and object).
- A destroyed tenant key never comes back: the tombstone is durable before the key is erased, and a start finishes what
  a crash broke off. A tenant id is never given a second key.
- A rotated key is erased. What a crash broke off is finished by the next start if the trust root names the new key, and undone if not.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import stat
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from licet_attestations import canonical, rotation
from licet_attestations.errors import FormatError, SignerRefused, SignerUnavailable
from licet_attestations.keys import ED25519, P256, Algorithm, PrivateKey
from licet_attestations.leaf import is_tenant
from licet_attestations.rpc import decode_bytes, encode_bytes
from licet_attestations.signer import aead
from licet_attestations.signer.files import (
    create_durably,
    make_private_directory,
    remove_durably,
    replace_durably,
    sweep,
    sync_directory,
)
from licet_attestations.trustroot import PURPOSES, Purpose, TrustedKey, TrustRoot

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_SCRYPT = {"name": "scrypt", "n": 1 << 15, "r": 8, "p": 1}
_SALT_BYTES = 16
_MAX_FILE_BYTES = 64 * 1024
_ROOT = "root"
_NEXT = "-next"
_ALGORITHMS: Mapping[Purpose, Algorithm] = {"log": ED25519, "attestation": P256, "warrant": P256, "model": P256}


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A fresh object key, bare and wrapped."""

    key: bytes = field(repr=False)
    wrapped: bytes


class Keystore:
    """All keys of one instance, opened. Made by ``create`` and ``open``."""

    def __init__(
        self, directory: Path, trust_root: TrustRoot, signing: Mapping[Purpose, PrivateKey], root_kek: bytes
    ) -> None:
        self._tenants_dir = directory / "tenants"
        self._signing = dict(signing)
        self._root_kek = root_kek
        self._lock = threading.Lock()
        self._tenant_keks: dict[str, bytes] = {}
        self.trust_root = trust_root
        for tombstone in self._tenants_dir.glob("*.gone"):
            remove_durably(tombstone.with_suffix(".json"))  # A crash fell between the tombstone and the erasure.

    @classmethod
    def create(
        cls, directory: Path, *, instance: str, log_origin_prefix: str, now_ms: int, passphrase: bytes | None = None
    ) -> Keystore:
        """Make fresh keys below ``directory`` and open them.

        Raises:
            SignerRefused: There is a complete keystore already; it is left alone.
            SignerUnavailable: It cannot be written.
        """
        if (directory / "trust-root.json").exists():
            raise SignerRefused(f"{directory}: there is a keystore already", code="signer.exists")
        try:
            make_private_directory(directory / "keys")
            make_private_directory(directory / "tenants")
            # Keys without a trust root are what a crash left: nothing was ever signed with them.
            for left in [*(directory / "keys").iterdir(), directory / "keystore.json"]:
                left.unlink(missing_ok=True)
            kdf = None if passphrase is None else _SCRYPT | {"salt": encode_bytes(os.urandom(_SALT_BYTES))}
            create_durably(directory / "keystore.json", canonical.dumps({"v": 1, "kdf": kdf}))
            sealing_key = None if passphrase is None or kdf is None else _derive(passphrase, kdf)
            trusted = []
            for purpose in PURPOSES:
                key = PrivateKey.generate(_ALGORITHMS[purpose])
                _write_secret(directory, purpose, key.to_pkcs8(), sealing_key)
                trusted.append(TrustedKey(key.public, purpose, now_ms))
            _write_secret(directory, _ROOT, aead.new_key(), sealing_key)
            trust_root = TrustRoot(instance, tuple(trusted), log_origin_prefix)
            TrustRoot.from_dict(trust_root.to_dict())  # Names are checked before they are for ever.
            create_durably(directory / "trust-root.json", trust_root.to_json())
        except OSError as error:
            raise SignerUnavailable(f"{directory}: a keystore cannot be made: {error.strerror}") from error
        return cls.open(directory, passphrase=passphrase)

    @classmethod
    def open(cls, directory: Path, *, passphrase: bytes | None = None) -> Keystore:
        """Open the keystore below ``directory``.

        Raises:
            SignerRefused: A file is open to others, a wrong or missing passphrase, or a file is not a key.
            SignerUnavailable: It cannot be read.
        """
        try:
            for folder in (directory, directory / "keys", directory / "tenants"):
                _check_private(folder.lstat(), folder)
            trust_root = TrustRoot.from_json(_read_private(directory / "trust-root.json"))
            kdf = canonical.loads(_read_private(directory / "keystore.json"))["kdf"]
            if (kdf is None) != (passphrase is None):
                raise SignerRefused("a passphrase is needed, or none is", code="signer.passphrase")
            sealing_key = None if passphrase is None else _derive(passphrase, kdf)
            _finish_rotation(directory, trust_root, sealing_key)
            secrets = {name: _read_secret(directory, name, sealing_key) for name in (*PURPOSES, _ROOT)}
            signing = {purpose: PrivateKey.from_pkcs8(secrets[purpose]) for purpose in PURPOSES}
            sweep(directory / "tenants")
            opened = cls(directory, trust_root, signing, secrets[_ROOT])
        except OSError as error:
            raise SignerUnavailable(f"{error.filename}: {error.strerror}", code="signer.keystore") from error
        except (FormatError, KeyError, TypeError) as error:
            raise SignerRefused(f"{directory}: not a keystore: {error}", code="signer.keystore") from error
        for purpose, key in signing.items():
            if key.public != rotation.current(trust_root, purpose).key:
                raise SignerRefused(f"the {purpose} key is not the trust root's", code="signer.keystore")
        return opened

    @classmethod
    def rotate(cls, directory: Path, purpose: Purpose, *, now_ms: int, passphrase: bytes | None = None) -> bytes:
        """Put a fresh key in the place of the one for ``purpose``, which is erased; return the signed statement of it.

        No signer may run on the folder meanwhile.

        Raises:
            SignerRefused: As ``open``, or the key began only now.
            SignerUnavailable: It cannot be written; the next ``open`` finishes or undoes what was begun.
        """
        opened = cls.open(directory, passphrase=passphrase)
        kdf = canonical.loads(_read_private(directory / "keystore.json"))["kdf"]
        sealing_key = None if passphrase is None else _derive(passphrase, kdf)
        before, new = opened.trust_root, PrivateKey.generate(_ALGORITHMS[purpose])
        try:
            after = rotation.rotated(before, purpose, new.public, now_ms)
        except FormatError as error:
            raise SignerRefused(f"the {purpose} key cannot be rotated: {error}", code="signer.keystore") from error
        envelope = rotation.sign(rotation.rotation_statement(before, after, purpose), [*opened.signing_keys(), new])
        try:
            _write_secret(directory, purpose, new.to_pkcs8(), sealing_key, file=f"{purpose}{_NEXT}")
            _lead_on(directory, before, after, envelope)
            _finish_rotation(directory, after, sealing_key)
        except OSError as error:
            raise SignerUnavailable(f"the key cannot be rotated: {error.strerror}", code="signer.keystore") from error
        return envelope

    @classmethod
    def declare_compromised(
        cls, directory: Path, keyid: str, *, from_ms: int, now_ms: int, passphrase: bytes | None = None
    ) -> bytes:
        """Declare a key that was rotated compromised from a moment on; return the signed statement of it.

        No signer may run on the folder meanwhile.

        Args:
            directory: Of the keystore.
            keyid: Identifier of the key, or its beginning.
            from_ms: The first moment at which others may have had it.
            now_ms: This moment; it cannot be one to come.
            passphrase: Of the keystore.

        Raises:
            SignerRefused: As ``open``, or there is no such key, or it cannot be declared so from then on.
            SignerUnavailable: It cannot be written; the trust root is the old one or the new one.
        """
        opened = cls.open(directory, passphrase=passphrase)
        before = opened.trust_root
        try:
            if from_ms > now_ms:
                raise FormatError("the moment is still to come")
            after = rotation.compromised(before, keyid, from_ms)
        except FormatError as error:
            raise SignerRefused(f"no key was declared compromised: {error}", code="signer.keystore") from error
        envelope = rotation.sign(rotation.compromise_statement(before, after, keyid), opened.signing_keys())
        try:
            _lead_on(directory, before, after, envelope)
        except OSError as error:
            raise SignerUnavailable(
                f"no key was declared compromised: {error.strerror}", code="signer.keystore"
            ) from error
        return envelope

    @staticmethod
    def rotations(directory: Path) -> list[bytes]:
        """The signed statements of all rotations and compromises, in their order.

        Raises:
            SignerRefused: One of them is none.
            SignerUnavailable: They cannot be read.
        """
        try:
            return _kept(directory, TrustRoot.from_json(_read_private(directory / "trust-root.json")))
        except OSError as error:
            raise SignerUnavailable(f"{error.filename}: {error.strerror}", code="signer.keystore") from error
        except FormatError as error:
            raise SignerRefused(f"{directory / 'rotations'}: {error}", code="signer.keystore") from error

    def signing_keys(self) -> list[PrivateKey]:
        """Return the keys of all purposes, for what they sign together."""
        return [self._signing[purpose] for purpose in PURPOSES]

    def signing_key(self, purpose: Purpose) -> PrivateKey:
        """Return the key that signs for ``purpose`` and nothing else."""
        return self._signing[purpose]

    def new_object_key(self, tenant: str, object_id: str) -> WrappedKey:
        """Make a key for one object of ``tenant``; the tenant's own key is made if this is its first."""
        key = aead.new_key()
        bound = aead.associated_data("licet-object-key-v1", tenant, object_id)
        return WrappedKey(key, aead.wrap(self._tenant_kek(tenant, create=True), key, bound))

    def unwrap_object_key(self, tenant: str, object_id: str, wrapped: bytes) -> bytes:
        """Return the key of one object of ``tenant``.

        Raises:
            SignerRefused: It was wrapped for another tenant or object, or altered, or the tenant's key is gone.
        """
        bound = aead.associated_data("licet-object-key-v1", tenant, object_id)
        try:
            return aead.unwrap(self._tenant_kek(tenant, create=False), wrapped, bound)
        except aead.SealBroken as error:
            raise SignerRefused("the wrapped key is not one of this object", code="signer.wrapped") from error

    def object_name(self, tenant: str, digest_hex: str) -> str:
        """Return the name for what ``digest_hex`` identifies: it tells nothing to who lacks the tenant's key."""
        info = aead.associated_data("licet-object-name-v1", tenant)
        name_key = HKDF(hashes.SHA256(), aead.KEY_BYTES, salt=None, info=info).derive(
            self._tenant_kek(tenant, create=True)
        )
        return hmac.new(name_key, digest_hex.encode(), hashlib.sha256).hexdigest()

    def webhook_secret(self, tenant: str, webhook: str) -> bytes:
        """Return the secret of a webhook. It is derived, stored nowhere, and gone with the tenant's key."""
        info = aead.associated_data("licet-webhook-v1", tenant, webhook)
        key = self._tenant_kek(tenant, create=True)
        return HKDF(hashes.SHA256(), aead.KEY_BYTES, salt=None, info=info).derive(key)

    def destroy_tenant_key(self, tenant: str) -> bool:
        """Erase the tenant's key for ever; return whether there was one. Doing it again changes nothing.

        Raises:
            SignerUnavailable: It may or may not be erased; ask again.
        """
        with self._lock:
            self._tenant_keks.pop(tenant, None)
            path = self._tenant_path(tenant)
            try:
                with contextlib.suppress(FileExistsError):
                    create_durably(path.with_suffix(".gone"), canonical.dumps({"v": 1, "tenant": tenant}))
                return remove_durably(path)
            except OSError as error:
                raise SignerUnavailable(f"the tenant's key cannot be erased: {error.strerror}") from error

    def _tenant_path(self, tenant: str) -> Path:
        if not is_tenant(tenant):
            raise SignerRefused("not a tenant", code="signer.tenant")
        return self._tenants_dir / f"{tenant}.json"

    def _tenant_kek(self, tenant: str, *, create: bool) -> bytes:
        path = self._tenant_path(tenant)
        bound = aead.associated_data("licet-tenant-key-v1", tenant)
        with self._lock:
            if (known := self._tenant_keks.get(tenant)) is not None:
                return known
            try:
                if path.with_suffix(".gone").exists():
                    raise SignerRefused("the tenant's key was destroyed", code="signer.destroyed")
                if not path.exists():
                    if not create:
                        raise SignerRefused("the tenant has no key", code="signer.no-key")
                    wrapped = aead.wrap(self._root_kek, aead.new_key(), bound)
                    create_durably(path, canonical.dumps({"v": 1, "wrapped": encode_bytes(wrapped)}))
                stored = canonical.loads(_read_private(path))
                kek = aead.unwrap(self._root_kek, decode_bytes(stored["wrapped"]), bound)
            except OSError as error:
                raise SignerUnavailable(f"the tenant's key cannot be had: {error.strerror}") from error
            except (aead.SealBroken, FormatError, KeyError, TypeError) as error:
                raise SignerRefused("the tenant's key file is damaged", code="signer.keystore") from error
            self._tenant_keks[tenant] = kek
            return kek


def _derive(passphrase: bytes, kdf: dict[str, Any]) -> bytes:
    if {name: kdf[name] for name in _SCRYPT} != _SCRYPT:
        raise SignerRefused("the keystore names another key derivation", code="signer.keystore")
    salt = decode_bytes(kdf["salt"])
    return Scrypt(salt=salt, length=aead.KEY_BYTES, n=1 << 15, r=8, p=1).derive(passphrase)


def _write_secret(
    directory: Path, name: str, secret: bytes, sealing_key: bytes | None, *, file: str | None = None
) -> None:
    bound = aead.associated_data("licet-keystore-v1", name)
    stored = secret if sealing_key is None else aead.wrap(sealing_key, secret, bound)
    value = {"v": 1, "purpose": name, "sealed": sealing_key is not None, "secret": encode_bytes(stored)}
    create_durably(directory / "keys" / f"{file or name}.json", canonical.dumps(value))


def _read_secret(directory: Path, name: str, sealing_key: bytes | None, *, file: str | None = None) -> bytes:
    value = canonical.loads(_read_private(directory / "keys" / f"{file or name}.json"))
    if value["purpose"] != name or value["sealed"] != (sealing_key is not None):
        raise SignerRefused(f"keys/{file or name}.json is not what its name says", code="signer.keystore")
    stored = decode_bytes(value["secret"])
    if sealing_key is None:
        return stored
    try:
        return aead.unwrap(sealing_key, stored, aead.associated_data("licet-keystore-v1", name))
    except aead.SealBroken as error:
        raise SignerRefused(
            "the passphrase is another, or the key file is damaged", code="signer.passphrase"
        ) from error


def _kept(directory: Path, trust_root: TrustRoot) -> list[bytes]:
    """The statements that led to the trust root. One behind them leads further: a crash left it, and it never counted."""
    found: list[bytes] = []
    counted = 0
    while (path := directory / "rotations" / f"{len(found) + 1}.json").exists():
        found.append(_read_private(path, max_bytes=rotation.MAX_ROTATION_BYTES))
        if rotation.from_where(found[-1])[1] == rotation.digest_hex(trust_root):
            counted = len(found)
    return found[:counted]


def _lead_on(directory: Path, before: TrustRoot, after: TrustRoot, envelope: bytes) -> None:
    """Keep the statement, and let the trust root follow it."""
    make_private_directory(directory / "rotations")
    number = len(_kept(directory, before)) + 1
    replace_durably(directory / "rotations" / f"{number}.json", envelope)
    # With this it is done: a crash before it left the old trust root, one behind it the new one.
    replace_durably(directory / "trust-root.json", after.to_json())


def _finish_rotation(directory: Path, trust_root: TrustRoot, sealing_key: bytes | None) -> None:
    """Finish, or undo, the rotation that a crash broke off."""
    for purpose in PURPOSES:
        waiting = directory / "keys" / f"{purpose}{_NEXT}.json"
        if not waiting.exists():
            continue
        key = PrivateKey.from_pkcs8(_read_secret(directory, purpose, sealing_key, file=f"{purpose}{_NEXT}"))
        if key.public == rotation.current(trust_root, purpose).key:
            waiting.replace(directory / "keys" / f"{purpose}.json")
        else:
            waiting.unlink()
        sync_directory(directory / "keys")


def _check_private(found: os.stat_result, path: Path) -> None:
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise SignerRefused(f"{path}: must be this user's alone: chmod go-rwx it", code="signer.permissions")


def _read_private(path: Path, *, max_bytes: int = _MAX_FILE_BYTES) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        _check_private(os.fstat(fd), path)
        return file.read(max_bytes)


def read_passphrase(path: Path) -> bytes:
    """Read a passphrase from a file of this user alone; a final newline is not part of it.

    Raises:
        SignerRefused: The file is open to others, or empty.
        SignerUnavailable: It cannot be read.
    """
    try:
        return check_passphrase(_read_private(path))
    except OSError as error:
        raise SignerUnavailable(f"{path}: {error.strerror}", code="signer.passphrase") from error


def check_passphrase(data: bytes) -> bytes:
    """Return the passphrase in ``data``.

    Raises:
        SignerRefused: It is empty.
    """
    passphrase = data.removesuffix(b"\n").removesuffix(b"\r")
    if not passphrase:
        raise SignerRefused("the passphrase is empty", code="signer.passphrase")
    return passphrase
