"""``licet backup`` and ``licet restore``: an installation as files, and back, without a log ever being forked.

Rules kept here:

- The copy of the database is of one moment. While the writers stand still for that moment, the signer signs every log
  as it is then, and its state is copied: what the signer last signed is exactly the log that was copied, never less. So is
  the router's: deployments and the account of invocations are those of the database that was copied.
- What is copied after that moment (sealed objects, effects, spent marks) may only be more.
- A manifest names every file by digest, and every log by size, root and signed checkpoint.
- A restore believes nothing: digests, logs from the first leaf on, checkpoints, and the signer's last heads are verified
  before the folder gets its name. A log that is shorter than what is known to be signed, or another, is refused.
- It is for SQLite. PostgreSQL has its own ways of being copied, and both commands refuse it with the order of the steps.
- Everything written is its owner's alone: a backup holds keys and plaintext facts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from sqlalchemy import Connection, Engine, select

from licet_attestations.checkpoint import verify_checkpoint
from licet_attestations.errors import LicetAttestationError, SignerRefused, SignerUnavailable, VerificationError
from licet_attestations.signer.client import SignerClient
from licet_attestations.signer.files import create_durably, make_private_directory, sync_directory
from licet_attestations.signer.state import Head
from licet_attestations.trustroot import TrustRoot
from licet_engine import __version__, checkpointer
from licet_engine.domain.errors import ConfigurationError
from licet_engine.domain.refs import now_ms
from licet_engine.init import INSTALLED_FILE, is_initialised
from licet_engine.log import store
from licet_engine.log.fsck import fsck
from licet_engine.log.notary import CheckpointSigner
from licet_engine.separation import Separation, launch_command
from licet_engine.settings import Settings
from licet_engine.store.db import open_engine, read_transaction, write_transaction
from licet_engine.users import Users

MANIFEST: Final = "manifest.json"
_CHUNK_BYTES: Final = 1 << 20
_MAX_MANIFEST_BYTES: Final = 256 << 20
_MAX_TRIES: Final = 8
_PLAIN: Final = re.compile(r"[A-Za-z0-9~][A-Za-z0-9._@~-]*")
_PASSING: Final = (".tmp-", ".part")
_ROUTER_STATE: Final = ("router-id", "endpoints/*/*/*.json")
_ROUTER_MODELS: Final = "endpoints/*/*/models/[0-9]*/*"
_ON_THEIR_WAY: Final = "*/state/uploads/*/*"
"""Uploads that adapters began. One that goes on from an older note could seal another text with a key that was used since."""
_SIGNER_FILES: Final = ("keystore.json", "trust-root.json", "keys/*.json", "tenants/*.json", "tenants/*.gone")


@dataclass(slots=True)
class Report:
    """What was backed up or restored.

    Attributes:
        folder: Where it lies.
        logs: Tenant to entries.
        unsigned: Logs of which the last entries are under no checkpoint, since the signer did not answer.
        files: How many files.
        bytes: How many bytes.
    """

    folder: Path
    logs: dict[str, int] = field(default_factory=dict)
    unsigned: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """As commands tell it."""
        return {
            "folder": str(self.folder),
            "logs": self.logs,
            "unsigned": self.unsigned,
            "files": self.files,
            "bytes": self.bytes,
        }


def require_sqlite(settings: Settings, verb: str) -> None:
    """Refuse what is not for this kind of database, and say what is.

    Raises:
        ConfigurationError: The installation keeps its facts and logs in PostgreSQL.
    """
    if settings.database_urls:
        raise ConfigurationError(
            f"LICET_DATABASE_URLS is set: the facts and logs are in PostgreSQL, which licet {verb} does not copy. Copy signer/state,"
            " then pg_dump the database, then copy signer/ and worker/adapters/, in this order; after pg_restore run licet log fsck."
            " docs/operations.md, Back-up and restore, has the commands"
        )


# --- backup ---------------------------------------------------------------------------------------------------------


def backup(settings: Settings, target: Path) -> Report:
    """Copy an installation, whether or not it runs.

    Args:
        settings: Of the installation.
        target: A folder that does not exist yet.

    Raises:
        ConfigurationError: There is no installation, it is on PostgreSQL, the folder is taken, or a log is not what the signer signed.
    """
    require_sqlite(settings, "backup")
    if not is_initialised(settings) or not settings.database.is_file():
        raise ConfigurationError(f"{settings.data} holds no installation to back up")
    part = _begin(target)
    try:
        report = Report(target)
        # Before the moment and after it: what was deployed at it is in one of the two.
        _copy_all(settings.router_data, _ROUTER_MODELS, part / "router")
        logs = _copy_moment(settings, part, report)
        _copy_all(settings.router_data, _ROUTER_MODELS, part / "router", add=True)
        for pattern in ("spent/**/*", "effects/**/*"):
            _copy_all(settings.router_data, pattern, part / "router")
        for pattern in _SIGNER_FILES:
            _copy_all(settings.signer_data, pattern, part / "signer")
        _copy_all(settings.worker_data / "adapters", "**/*", part / "worker" / "adapters", leave_out=_ON_THEIR_WAY)
        _copy(settings.trust_root, part / settings.trust_root.name)
        files = {name: _measure(part / name) for name in _names(part)}
        report.files, report.bytes = len(files), sum(size for _, size in files.values())
        manifest = {
            "v": 1,
            "made_at_ms": now_ms(),
            "version": __version__,
            "logs": logs,
            "files": {name: {"sha256": digest_hex, "bytes": size} for name, (digest_hex, size) in files.items()},
        }
        create_durably(part / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
        part.rename(target)
        sync_directory(target.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return report


def _copy_moment(settings: Settings, part: Path, report: Report) -> dict[str, Any]:
    """Copy the database and the signer's heads, of one moment; return what the logs were then."""
    engine = open_engine(settings.database)
    target = Settings(data=part).database
    make_private_directory(target.parent)
    source = sqlite3.connect(f"file:{settings.database}?mode=ro", uri=True, isolation_level=None)
    with contextlib.ExitStack() as stack:
        stack.callback(engine.dispose)
        stack.callback(source.close)
        signer = stack.enter_context(_checkpoints(settings))
        # Once without stopping anybody, so that little is left to sign while the writers wait.
        with contextlib.suppress(SignerUnavailable), read_transaction(engine) as connection:
            _sign_all(connection, signer)
        with write_transaction(engine) as connection:
            logs = _sign_all_or_tell(connection, signer, report)
            # This transaction reads the database as it is now, however long it takes to copy it.
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM log_head").fetchone()
            _copy_all(settings.signer_data / "state", "*.json", part / "signer" / "state")
            for pattern in _ROUTER_STATE:
                _copy_all(settings.router_data, pattern, part / "router")
        with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")
        target.chmod(0o600)
    return logs


@contextlib.contextmanager
def _checkpoints(settings: Settings) -> Iterator[CheckpointSigner]:
    """The signer, as who may have checkpoints signed: this user, or else the api's, if root can become it."""
    users = Users(settings.uid_base)
    try:
        is_apart = os.geteuid() == 0 and settings.signer_socket.stat().st_uid == users.signer
    except OSError:  # No signer runs: what is tried will tell.
        is_apart = False
    if not is_apart:
        yield SignerClient(settings.signer_socket)
        return
    command = [sys.executable, "-P", "-m", checkpointer.__name__, str(settings.signer_socket)]
    separation = Separation(users, has_namespace=False, notes=())
    made = checkpointer.Checkpointer(launch_command(settings, separation, "api", command))
    try:
        yield made
    finally:
        made.close()


def _sign_all_or_tell(connection: Connection, signer: CheckpointSigner, report: Report) -> dict[str, Any]:
    try:
        notes, answers = _sign_all(connection, signer), True
    except SignerUnavailable:
        notes, answers = {}, False
    logs = {}
    for tenant, size, root in connection.execute(
        select(store.HEADS.c.tenant_id, store.HEADS.c.size, store.HEADS.c.root)
    ):
        logs[tenant] = {"size": size, "root_hex": root.hex(), "checkpoint": notes.get(tenant, "")}
        report.logs[tenant] = size
        if answers and size and tenant not in notes:
            raise ConfigurationError(f"the log of {tenant} is shorter than the signer signed it: run licet log fsck")
        if size and tenant not in notes:
            report.unsigned.append(tenant)
    return logs


def _sign_all(connection: Connection, signer: CheckpointSigner) -> dict[str, str]:
    """Have the signer sign every log as it is in this transaction; what it signed already, it signs again alike."""
    notes = {}
    heads = connection.execute(select(store.HEADS.c.tenant_id, store.HEADS.c.size, store.HEADS.c.root)).all()
    for tenant, size, root in heads:
        if not size:
            continue
        for left in reversed(range(_MAX_TRIES)):
            signed, _ = signer.last_checkpoint(tenant)
            if signed > size:  # The service went on while this transaction reads.
                break
            proof = store.consistency_proof(connection, tenant, signed, size) if 0 < signed < size else []
            try:
                notes[tenant] = signer.sign_checkpoint(tenant, size, root, proof)
                break
            except SignerRefused as error:
                # The api may have had a checkpoint signed in between: the proof is then from another size.
                if not left or signer.last_checkpoint(tenant)[0] == signed:
                    raise ConfigurationError(
                        f"the log of {tenant} is not what the signer signed before, so it is not backed up as if it were:"
                        f" {error}; run licet log fsck"
                    ) from error
    return notes


# --- restore --------------------------------------------------------------------------------------------------------


def restore(source: Path, data: Path, *, signer_data: Path | None = None, checkpoints: Sequence[Path] = ()) -> Report:
    """Make an installation from a backup, if no log would be forked by it.

    Args:
        source: The backup.
        data: Folder to make; it must not exist.
        signer_data: The folder of a signer that outlived the installation; it takes the place of the backup's.
        checkpoints: Signed checkpoints that others kept; the restored logs must reach them.

    Raises:
        ConfigurationError: The backup is damaged, or a log in it is behind what was signed.
    """
    part = _begin(data)
    try:
        manifest = _read_manifest(source)
        report = Report(data)
        for name, entry in manifest["files"].items():
            _copy_verified(source / name, part / name, entry)
            report.files += 1
            report.bytes += entry["bytes"]
        if signer_data is not None:
            shutil.rmtree(part / "signer")
            for pattern in (*_SIGNER_FILES, "state/*.json"):
                _copy_all(signer_data, pattern, part / "signer")
        engine = open_engine(Settings(data=part).database)
        try:
            _verify_logs(engine, part, manifest["logs"], checkpoints, report)
        finally:
            engine.dispose()
        for folder in ("run", "spool", "worker", "router", "signer/state"):
            make_private_directory(part / folder)
        Path(f"{Settings(data=part).database}.lock").unlink(missing_ok=True)
        create_durably(part / INSTALLED_FILE, b"restored\n")
        part.rename(data)
        sync_directory(data.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return report


def _read_manifest(source: Path) -> dict[str, Any]:
    path = source / MANIFEST
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ConfigurationError(f"{path} is larger than any manifest")
        manifest = json.loads(path.read_bytes())
        match manifest:
            case {"v": 1, "files": dict(files), "logs": dict(logs)}:
                for name, entry in files.items():
                    _check_name(name)
                    if not re.fullmatch("[0-9a-f]{64}", entry["sha256"]) or type(entry["bytes"]) is not int:
                        raise ValueError(name)
                if all(type(log["size"]) is int and bytes.fromhex(log["root_hex"]) for log in logs.values()):
                    return dict(manifest)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{source} is no backup: it has no {MANIFEST}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} cannot be read as a manifest: {error}") from error
    raise ConfigurationError(f"{path} is no manifest of version 1")


def _check_name(name: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or any(not _PLAIN.fullmatch(one) for one in parts) or "/".join(parts) != name:
        raise ConfigurationError(f"the manifest names a file {name!r}, which is no place in an installation")


def _verify_logs(
    engine: Engine, part: Path, logs: Mapping[str, Any], checkpoints: Sequence[Path], report: Report
) -> None:
    """Verify the restored logs against themselves, the manifest, the signer and what others kept."""
    trust_root = _trust_root(part)
    _verify_each(engine, logs, report)
    with read_transaction(engine) as connection:
        # 2. What the signer signed when the backup was made, by its signature.
        for tenant, stated in logs.items():
            if stated["checkpoint"]:
                _reaches(connection, trust_root, tenant, stated["checkpoint"], "the manifest")
            elif stated["size"]:
                report.unsigned.append(tenant)
        # 3. What the signer signed last: it would refuse to go on from less.
        for path in sorted((part / "signer" / "state").glob("*.json")):
            head = _signed_last(path)
            _extends(connection, path.stem, head.size, head.root, "the signer")
        # 4. What others kept.
        prefix = f"{trust_root.log_origin_prefix}/"
        for path in checkpoints:
            note = path.read_text("utf-8")
            origin = note.partition("\n")[0]
            if not origin.startswith(prefix):
                raise ConfigurationError(f"{path} is no checkpoint of a log of this installation")
            _reaches(connection, trust_root, origin.removeprefix(prefix), note, str(path))


def _verify_each(engine: Engine, logs: Mapping[str, Any], report: Report) -> None:
    # 1. Every log, from the first leaf on.
    for found in fsck(engine):
        if found.problems:
            raise ConfigurationError(f"the log of {found.tenant_id} in the backup is damaged: {found.problems[0]}")
        stated = logs.get(found.tenant_id)
        if stated is None or (found.size, found.root.hex()) != (stated["size"], stated["root_hex"]):
            raise ConfigurationError(f"the log of {found.tenant_id} in the backup is not the one its manifest names")
        report.logs[found.tenant_id] = found.size
    missing = sorted(tenant for tenant, stated in logs.items() if stated["size"] and tenant not in report.logs)
    if missing:
        raise ConfigurationError(f"the backup names logs that it does not hold: {', '.join(missing)}")


def _trust_root(part: Path) -> TrustRoot:
    """The public keys, if the signer's and the installation's are the same."""
    try:
        own = TrustRoot.from_json((part / "signer" / "trust-root.json").read_bytes())
        published = TrustRoot.from_json((part / "trust-root.json").read_bytes())
    except (OSError, LicetAttestationError) as error:
        raise ConfigurationError(f"the backup's keys cannot be read: {error}") from error
    if own.to_dict() != published.to_dict():
        raise ConfigurationError("the signer is of another installation than the backup: its keys are others")
    return own


def _signed_last(path: Path) -> Head:
    try:
        return Head.from_bytes(path.read_bytes())
    except LicetAttestationError as error:
        raise ConfigurationError(f"the signer's last checkpoint of {path.stem} cannot be read: {error}") from error


def _reaches(connection: Connection, trust_root: TrustRoot, tenant: str, note: str, who: str) -> None:
    try:
        checkpoint = verify_checkpoint(note, trust_root.origin(tenant), trust_root.every_key("log"))
    except VerificationError as error:
        raise ConfigurationError(f"the checkpoint of {tenant} in {who} is not genuine: {error}") from error
    _extends(connection, tenant, checkpoint.size, checkpoint.root, who)


def _extends(connection: Connection, tenant: str, size: int, root: bytes, who: str) -> None:
    """The log holds what was signed: else going on from it would fork it."""
    present = store.read_head(connection, tenant).size
    if size > present:
        raise ConfigurationError(
            f"restoring this would fork the log of {tenant}: {who} knows {size} signed entries, the backup has {present}."
            " Restore a newer backup, or go on with what is left of the installation"
        )
    if size and store.root_at(connection, tenant, size) != root:
        raise ConfigurationError(
            f"restoring this would fork the log of {tenant}: its first {size} entries are not those that {who} knows as signed"
        )


# --- files ----------------------------------------------------------------------------------------------------------


def _begin(target: Path) -> Path:
    """A folder beside the target, in which everything is made before it gets its name."""
    if target.exists() or target.is_symlink():
        raise ConfigurationError(f"{target} exists already: name a folder that does not")
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        make_private_directory(part)
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be made: {error.strerror}") from error
    return part


def _copy_all(folder: Path, pattern: str, target: Path, *, leave_out: str = "", add: bool = False) -> None:
    """Copy files; links are left out, and so is what is being written or was removed meanwhile.

    Args:
        folder: Below which they lie.
        pattern: Which.
        target: Below which they are put.
        leave_out: Which not.
        add: Leave out what is there already.
    """
    for path in sorted(folder.glob(pattern)):
        if leave_out and path.relative_to(folder).match(leave_out):
            continue
        passing = path.name.startswith(_PASSING[0]) or path.name.endswith((*_PASSING[1:], ".lock"))
        if passing or path.is_symlink() or not path.is_file() or (add and (target / path.relative_to(folder)).exists()):
            continue
        with contextlib.suppress(FileNotFoundError):
            _copy(path, target / path.relative_to(folder))


def _copy(path: Path, target: Path) -> None:
    for _ in _chunks_through(path, target):
        pass


def _copy_verified(path: Path, target: Path, entry: Mapping[str, Any]) -> None:
    digest, size = hashlib.sha256(), 0
    try:
        for chunk in _chunks_through(path, target):
            digest.update(chunk)
            size += len(chunk)
    except OSError as error:
        raise ConfigurationError(f"{path} of the backup cannot be read: {error.strerror}") from error
    if size != entry["bytes"] or digest.hexdigest() != entry["sha256"]:
        raise ConfigurationError(f"{path} of the backup is not the file that the manifest names: it was changed or cut")


def _chunks_through(path: Path, target: Path) -> Iterator[bytes]:
    """Copy a file, durably and its owner's alone, and hand on what is copied."""
    source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(source, "rb") as reader:
        make_private_directory(target.parent)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as writer:
            while chunk := reader.read(_CHUNK_BYTES):
                writer.write(chunk)
                yield chunk
            writer.flush()
            os.fsync(writer.fileno())


def _names(part: Path) -> list[str]:
    return sorted(path.relative_to(part).as_posix() for path in part.rglob("*") if path.is_file())


def _measure(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return digest.hexdigest(), file.tell()
