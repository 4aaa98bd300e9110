"""The signer's process: its keys, its state and its rules behind one Unix socket.

Rules kept here:

- One signer for one data folder, held by a lock that the kernel drops with the process.
- The umask is 077 before anything is written; core dumps, which would hold keys, are off.
- Params are taken apart strictly: another name, a missing one or another type is refused before a rule sees it.
- Callers are told apart by their user where they have one each: the api may have checkpoints signed, and what the signer itself
  makes of proofs, and is told the secrets of webhooks, and nothing else, the worker anything but that. So neither can have a log of
  its own making signed and then act on it.
- A passphrase comes from a file or an open descriptor, never from an argument's value or the environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import inspect
import logging
import os
import resource
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from licet_attestations.errors import FormatError, LicetAttestationError, SignerRefused, SignerUnavailable
from licet_attestations.rpc import Handler, RpcServer, decode_bytes, encode_bytes
from licet_attestations.signer import logs
from licet_attestations.signer.files import make_private_directory
from licet_attestations.signer.keystore import Keystore, check_passphrase, read_passphrase
from licet_attestations.signer.rules import SignerRules
from licet_attestations.signer.state import CheckpointState, FileStorage
from licet_attestations.trustroot import PURPOSES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from licet_attestations.trustroot import Purpose

_log = logging.getLogger(__name__)
_MAX_PASSPHRASE_BYTES = 4096
_MAX_PROOF_HASHES = 64

LOOKING = frozenset({"public", "last_checkpoint"})
API_METHODS = LOOKING | {"sign_checkpoint", "webhook_secret", "attest_isolation", "attest_entry"}
WORKER_METHODS = frozenset(
    {
        *("public", "mint", "attest", "sign_model", "new_data_key", "unwrap", "object_tag", "object_name"),
        *("destroy_tenant_key", "sign_webhook"),
    }
)


def clock_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def _hex(value: str, length: int | None = None) -> bytes:
    try:
        data = bytes.fromhex(value)
    except ValueError as error:
        raise FormatError("hex text is needed") from error
    if length is not None and len(data) != length:
        raise FormatError(f"{length} bytes in hex are needed")
    return data


def _hashes(value: list[Any]) -> list[bytes]:
    if len(value) > _MAX_PROOF_HASHES or not all(isinstance(part, str) for part in value):
        raise FormatError(f"a proof is at most {_MAX_PROOF_HASHES} hashes in hex")
    return [_hex(part, 32) for part in value]


def _texts(value: dict[str, Any]) -> dict[str, str]:
    if not all(isinstance(text, str) for text in value.values()):
        raise FormatError("an object of texts is needed")
    return value


class _Handlers:
    """One method for each that may be called; its annotations are what its params must be."""

    def __init__(self, rules: SignerRules) -> None:
        self._rules = rules

    def public(self) -> Any:
        return self._rules.trust_root.to_dict()

    def sign_checkpoint(self, tenant: str, size: int, root: str, proof: list[Any]) -> Any:
        return {"note": self._rules.sign_checkpoint(tenant, size, _hex(root, 32), _hashes(proof))}

    def last_checkpoint(self, tenant: str) -> Any:
        size, root = self._rules.last_checkpoint(tenant)
        return {"size": size, "root": root.hex()}

    def mint(
        self,
        *,
        tenant: str,
        leaf: str,
        leaf_index: int,
        salt: str,
        record: str,
        proof: list[Any],
        checkpoint: str,
        adapter: str,
        operation: str,
        step: str,
        attempt: int,
        operation_id: str,
        resources: dict[str, Any],
        parameters: dict[str, Any],
        lifetime_ms: int,
    ) -> Any:
        envelope = self._rules.mint(
            tenant=tenant,
            leaf=leaf,
            leaf_index=leaf_index,
            salt=_hex(salt),
            record=record,
            proof=_hashes(proof),
            checkpoint=checkpoint,
            adapter=adapter,
            operation=operation,
            step=step,
            attempt=attempt,
            operation_id=operation_id,
            resources=_texts(resources),
            parameters=parameters,
            lifetime_ms=lifetime_ms,
        )
        return {"envelope": encode_bytes(envelope)}

    def attest(self, tenant: str, statement: str) -> Any:
        return {"envelope": encode_bytes(self._rules.attest(tenant, decode_bytes(statement)))}

    def attest_isolation(self, tenant: str, predicate: dict[str, Any]) -> Any:
        return {"envelope": encode_bytes(self._rules.attest_isolation(tenant, predicate))}

    def attest_entry(
        self,
        *,
        tenant: str,
        leaf: str,
        leaf_index: int,
        salt: str,
        record: str,
        proof: list[Any],
        checkpoint: str,
    ) -> Any:
        envelope = self._rules.attest_entry(
            tenant=tenant,
            leaf=leaf,
            leaf_index=leaf_index,
            salt=_hex(salt),
            record=record,
            proof=_hashes(proof),
            checkpoint=checkpoint,
        )
        return {"envelope": encode_bytes(envelope)}

    def sign_model(self, tenant: str, version: str, files: dict[str, Any], warrant: str) -> Any:
        return {"bundle": encode_bytes(self._rules.sign_model(tenant, version, _texts(files), decode_bytes(warrant)))}

    def new_data_key(self, tenant: str, object_id: str, warrant: str) -> Any:
        made = self._rules.new_data_key(tenant, object_id, decode_bytes(warrant))
        return {"key": encode_bytes(made.key), "wrapped": encode_bytes(made.wrapped)}

    def unwrap(self, tenant: str, object_id: str, wrapped: str, warrant: str) -> Any:
        key = self._rules.unwrap(tenant, object_id, decode_bytes(wrapped), decode_bytes(warrant))
        return {"key": encode_bytes(key)}

    def object_tag(self, tenant: str, object_id: str, wrapped: str, digest_hex: str, warrant: str) -> Any:
        tag = self._rules.object_tag(tenant, object_id, decode_bytes(wrapped), digest_hex, decode_bytes(warrant))
        return {"tag": tag}

    def object_name(self, tenant: str, digest_hex: str, warrant: str) -> Any:
        return {"name": self._rules.object_name(tenant, digest_hex, decode_bytes(warrant))}

    def webhook_secret(self, tenant: str, webhook: str) -> Any:
        return {"secret": self._rules.webhook_secret(tenant, webhook)}

    def sign_webhook(self, tenant: str, webhook: str, message: str, timestamp_s: int, body: str) -> Any:
        return {"signature": self._rules.sign_webhook(tenant, webhook, message, timestamp_s, decode_bytes(body))}

    def destroy_tenant_key(self, tenant: str, warrant: str) -> Any:
        return {"existed": self._rules.destroy_tenant_key(tenant, decode_bytes(warrant))}


_TYPES: Mapping[str, type] = {"str": str, "int": int, "list[Any]": list, "dict[str, Any]": dict}


def handlers(rules: SignerRules) -> dict[str, Handler]:
    """Return the signer's methods by name, their params checked against the annotations."""
    made = _Handlers(rules)
    return {name: _strict(method) for name, method in inspect.getmembers(made, inspect.ismethod) if name[0] != "_"}


def _strict(method: Callable[..., Any]) -> Handler:
    expected = {
        name: _TYPES[str(parameter.annotation)] for name, parameter in inspect.signature(method).parameters.items()
    }

    def handle(params: dict[str, Any]) -> Any:
        if params.keys() != expected.keys():
            raise FormatError(f"the params are {', '.join(sorted(expected)) or 'none'}")
        for name, kind in expected.items():
            if type(params[name]) is not kind:
                raise FormatError(f"param {name} is not of its type")
        return method(**params)

    return handle


@contextlib.contextmanager
def _only_signer(data_dir: Path) -> Iterator[None]:
    fd = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SignerUnavailable(f"{data_dir}: another signer is running on this folder") from error
        yield
    finally:
        os.close(fd)


def run(
    data_dir: Path,
    socket_path: Path,
    *,
    passphrase: bytes | None = None,
    callers: Mapping[int, Collection[str]] | None = None,
    shared_gid: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        data_dir: Where the keystore is (see ``Keystore.create``).
        socket_path: Where to listen.
        passphrase: Of the keystore, if it has one.
        callers: Who may call, and which methods; only this user, and all, if None.
        shared_gid: Group of the callers, where they are other users.

    Raises:
        SignerRefused: The keystore is not what it must be.
        SignerUnavailable: Another signer is running here, or the disk fails.
    """
    with _only_signer(data_dir):
        keystore = Keystore.open(data_dir, passphrase=passphrase)
        rules = SignerRules(keystore, CheckpointState(FileStorage(data_dir / "state")), clock_ms)
        allowed = {os.geteuid()} if callers is None else callers
        server = RpcServer(socket_path, handlers(rules), allowed, shared_gid=shared_gid)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.close())
        _log.info("signer ready: instance=%s socket=%s", keystore.trust_root.instance, socket_path)
        server.serve_forever()


def _passphrase(path: Path | None, fd: int | None) -> bytes | None:
    if path is not None and fd is not None:
        raise SignerRefused("a passphrase comes from a file or a descriptor, not both", code="signer.passphrase")
    if path is not None:
        return read_passphrase(path)
    if fd is None:
        return None
    with os.fdopen(fd, "rb") as file:
        return check_passphrase(file.read(_MAX_PASSPHRASE_BYTES))


def _callers(api: int | None, worker: int | None, overseer: int | None) -> dict[int, frozenset[str]] | None:
    if api is None and worker is None and overseer is None:
        return None
    if api is None or worker is None or len({api, worker, overseer}) != 3:  # noqa: PLR2004  # All of them, or None for one.
        raise click.UsageError("--api-uid and --worker-uid go together, and all users must be different ones")
    callers = {api: API_METHODS, worker: WORKER_METHODS}
    return callers if overseer is None else callers | {overseer: LOOKING}


@click.command(help="Hold the keys of an instance of Licet and sign by the rules.")
@click.option("--data", "data_dir", type=click.Path(path_type=Path), required=True, help="Folder of the keystore.")
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="Socket to listen on.")
@click.option("--init", is_flag=True, help="Make a fresh keystore, print its trust root and end.")
@click.option("--rotate", type=click.Choice(PURPOSES), help="Put a fresh key in the place of this one, and end.")
@click.option("--compromised", help="Declare this key, which was rotated, compromised, and end.")
@click.option("--from-ms", type=click.IntRange(0), help="From when (with --compromised): ms since 1970.")
@click.option(
    "--rotations",
    is_flag=True,
    help="Print the signed statements of all rotations and compromises, one a line, and end.",
)
@click.option("--instance", default="licet", show_default=True, help="Name of the instance (with --init).")
@click.option(
    "--origin", default="licet.local/log", show_default=True, help="Prefix of the logs' origins (with --init)."
)
@click.option("--passphrase-file", type=click.Path(path_type=Path), help="File (0600) that holds the passphrase.")
@click.option("--passphrase-fd", type=int, help="Open descriptor to read the passphrase from.")
@click.option("--api-uid", type=int, help="User of the api: it alone has checkpoints signed (with --worker-uid).")
@click.option("--worker-uid", type=int, help="User of the worker: it may call all but that (with --api-uid).")
@click.option("--overseer-uid", type=int, help="User that may look: public keys and last checkpoints.")
@click.option("--shared-gid", type=int, help="Group of the callers, where they are other users.")
def main(
    data_dir: Path,
    socket_path: Path | None,
    *,
    init: bool,
    rotate: Purpose | None,
    compromised: str | None,
    from_ms: int | None,
    rotations: bool,
    instance: str,
    origin: str,
    passphrase_file: Path | None,
    passphrase_fd: int | None,
    api_uid: int | None,
    worker_uid: int | None,
    overseer_uid: int | None,
    shared_gid: int | None,
) -> None:
    """Run the signer's command line."""
    logs.configure()
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        passphrase = _passphrase(passphrase_file, passphrase_fd)
        if init:
            make_private_directory(data_dir)
            with _only_signer(data_dir):
                made = Keystore.create(
                    data_dir, instance=instance, log_origin_prefix=origin, now_ms=clock_ms(), passphrase=passphrase
                )
            click.echo(made.trust_root.to_json().decode())
            return
        if rotate is not None or compromised is not None or rotations:
            if (compromised is None) != (from_ms is None):
                raise click.UsageError("--compromised and --from-ms go together")
            with _only_signer(data_dir):
                if rotate is not None:
                    Keystore.rotate(data_dir, rotate, now_ms=clock_ms(), passphrase=passphrase)
                if compromised is not None and from_ms is not None:
                    Keystore.declare_compromised(
                        data_dir, compromised, from_ms=from_ms, now_ms=clock_ms(), passphrase=passphrase
                    )
                for statement in Keystore.rotations(data_dir):
                    click.echo(statement.decode())
            return
        if socket_path is None:
            raise click.UsageError("--socket is needed to serve")
        run(
            data_dir,
            socket_path,
            passphrase=passphrase,
            callers=_callers(api_uid, worker_uid, overseer_uid),
            shared_gid=shared_gid,
        )
    except (LicetAttestationError, OSError) as error:
        raise click.ClickException(str(error)) from error
