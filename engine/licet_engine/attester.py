"""Has one statement signed for a command of the machine's administrator, as the one user that may: the worker's.

Run as ``python -m licet_engine.attester SOCKET TENANT``: the statement on standard input, its envelope on standard output.
It opens nothing but the signer's socket.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from licet_attestations.errors import SignerError, SignerUnavailable
from licet_attestations.signer.client import SignerClient
from licet_engine.domain.errors import ConfigurationError
from licet_engine.evidence.attesting import log_attestation
from licet_engine.log.sequencer import Sequencer
from licet_engine.separation import Separation, launch_command
from licet_engine.settings import Settings
from licet_engine.store.access import Role, open_database
from licet_engine.users import Users

_WITHIN_S: Final = 30.0


def main() -> None:
    """Sign what is on standard input."""
    try:
        envelope = SignerClient(Path(sys.argv[1])).attest(sys.argv[2], sys.stdin.buffer.read())
    except SignerError as error:
        sys.exit(str(error))
    sys.stdout.buffer.write(envelope)


def attest(settings: Settings, tenant: str, statement: bytes) -> bytes:
    """Have a tenant's statement signed by the running signer; return the DSSE envelope.

    Raises:
        SignerUnavailable: It does not answer, or refuses.
    """
    users = Users(settings.uid_base)
    try:
        is_apart = os.geteuid() == 0 and settings.signer_socket.stat().st_uid == users.signer
    except OSError:  # No signer runs: what is tried will tell.
        is_apart = False
    if not is_apart:
        return SignerClient(settings.signer_socket).attest(tenant, statement)
    command = [sys.executable, "-P", "-m", __spec__.name, str(settings.signer_socket), tenant]
    as_worker = launch_command(settings, Separation(users, has_namespace=False, notes=()), "worker", command)
    try:
        ended = subprocess.run(as_worker, input=statement, capture_output=True, check=False, timeout=_WITHIN_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SignerUnavailable(f"the process that has a statement signed did not end: {error}") from error
    if ended.returncode:
        told = (ended.stderr.decode(errors="replace").strip().splitlines() or ["it ended"])[-1]
        raise SignerUnavailable(f"nothing was signed: {told}")
    return ended.stdout


def require_signer(settings: Settings) -> None:
    """Refuse before anything is done where nothing could be signed at its end.

    Raises:
        ConfigurationError: No signer of this installation runs, or it is closed to this user.
    """
    try:
        is_there = settings.signer_socket.is_socket()
    except OSError as error:
        raise ConfigurationError(f"{settings.signer_socket} is closed to this user: {error.strerror}") from error
    if not is_there:
        raise ConfigurationError(
            f"no signer runs in {settings.data}: serve the installation, and name its folder with --data or LICET_DATA"
        )


def attest_and_log(settings: Settings, statements: Mapping[str, bytes]) -> dict[str, str]:
    """Have statements signed and logged, each in its tenant's log; return the digests under which they are known.

    Raises:
        SignerUnavailable: As for `attest`.
    """
    engine = open_database(settings, Role.SEQUENCER, pool_size=2)
    sequencer = Sequencer(engine)
    try:
        return {
            tenant: log_attestation(sequencer, tenant, attest(settings, tenant, statement))
            for tenant, statement in sorted(statements.items())
        }
    finally:
        sequencer.close()
        engine.dispose()


if __name__ == "__main__":
    main()
