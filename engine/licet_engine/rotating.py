"""Rotation, and compromise, of one of the signer's keys, in an installation that is not served.

Rules kept here:

- The signer's own program makes the key, as the signer's user; nobody else reads one.
- What it signed of that counts here once it was verified from the trust root that stands here, as an auditor verifies it; it is logged
  with the platform before the new trust root takes the old one's place.
- What a crash broke off is finished before anything new is begun.

What a crash leaves: the signer's trust root is ahead of the installation's by some rotations, whose statements the signer has kept.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from licet_attestations import rotation
from licet_attestations.errors import FormatError
from licet_attestations.signer.files import replace_durably
from licet_attestations.signer.keystore import read_passphrase
from licet_attestations.trustroot import Purpose, TrustedKey, TrustRoot
from licet_engine.domain.errors import ConfigurationError
from licet_engine.domain.refs import now_ms
from licet_engine.evidence.attesting import log_attestation
from licet_engine.log.sequencer import Sequencer
from licet_engine.separation import find_separation, launch_command, take_over
from licet_engine.serve import hold_stopped
from licet_engine.settings import Settings
from licet_engine.store import belonging
from licet_engine.store.access import Role, open_database
from licet_engine.store.db import read_transaction, write_transaction

_WITHIN_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Rotated:
    """What was done.

    Attributes:
        before: The trust root that stood.
        after: The one that stands.
        statements: The signed statements that led from one to the other.
        digests_hex: By which the platform's log names them.
    """

    before: TrustRoot
    after: TrustRoot
    statements: tuple[bytes, ...]
    digests_hex: tuple[str, ...]

    def then(self, later: Rotated) -> Rotated:
        """Both in one."""
        return Rotated(
            self.before, later.after, self.statements + later.statements, self.digests_hex + later.digests_hex
        )


def rotate(settings: Settings, purpose: Purpose) -> Rotated:
    """Rotate the key for a purpose. What was broken off is finished before; if it was this, there is no more to do.

    Raises:
        ConfigurationError: It is being served, or the signer's keys cannot be rotated; says why.
        VerificationError: What the signer keeps does not lead on from the trust root that stands here.
    """
    with _alone(settings) as before:
        ahead = _ahead(settings, before)
        _check_database(settings, before, ahead)
        if not ahead:
            return _publish(settings, before, _ahead(settings, before, "--rotate", purpose))
        finished = _publish(settings, before, ahead)
        if rotation.current(before, purpose) != rotation.current(finished.after, purpose):
            return finished
        return finished.then(_publish(settings, finished.after, _ahead(settings, finished.after, "--rotate", purpose)))


def declare_compromised(settings: Settings, keyid: str, from_ms: int) -> Rotated:
    """Declare a key compromised from a moment on; one that counts still is rotated first. What was broken off is finished before.

    Raises:
        ConfigurationError: As ``rotate``, or no such key can be declared so from then on.
        VerificationError: As ``rotate``.
    """
    with _alone(settings) as found:
        ahead = _ahead(settings, found)
        _check_database(settings, found, ahead)
        finished = _publish(settings, found, ahead) if ahead else None
        before = found if finished is None else finished.after
        if finished is not None and _is_declared(before, keyid, from_ms) and not _is_declared(found, keyid, from_ms):
            return finished  # It was this that was broken off.
        key = _declarable(before, keyid, from_ms)
        rotated = ["--rotate", key.purpose] if key.valid_until_ms is None else []
        declared = ["--compromised", key.key.keyid, "--from-ms", str(from_ms)]
        done = _publish(settings, before, _ahead(settings, before, *rotated, *declared))
        return done if finished is None else finished.then(done)


def _is_declared(trust: TrustRoot, keyid: str, from_ms: int) -> bool:
    """Whether a key is declared compromised from then on, or from earlier."""
    try:
        since_ms = rotation.named(trust, keyid).compromised_from_ms
    except FormatError:
        return False
    return since_ms is not None and since_ms <= from_ms


def _declarable(trust: TrustRoot, keyid: str, from_ms: int) -> TrustedKey:
    """The key, if it can be declared compromised from then on once it has ended: told before anything is done."""
    try:
        if from_ms > now_ms():
            raise FormatError("the moment is still to come")
        key = rotation.named(trust, keyid)
        ended = replace(key, valid_until_ms=key.valid_until_ms or now_ms())
        trial = replace(trust, trusted=tuple(ended if one is key else one for one in trust.trusted))
        rotation.compromised(trial, keyid, from_ms)
    except FormatError as error:
        raise ConfigurationError(f"no key was declared compromised: {error}") from error
    return key


@contextmanager
def _alone(settings: Settings) -> Iterator[TrustRoot]:
    """The trust root that stands here, while nothing is served."""
    if not settings.trust_root.exists():
        raise ConfigurationError(f"{settings.data} holds no installation; make one: licet init --data {settings.data}")
    with hold_stopped(settings):
        # As a start does: what root made since is the signer's now.
        take_over(settings, find_separation(settings).users)
        yield TrustRoot.from_json(settings.trust_root.read_bytes())


def _check_database(settings: Settings, trust: TrustRoot, ahead: list[bytes]) -> None:
    """Refuse a database that is not this installation's, before the signer does anything that would then be logged nowhere."""
    if not settings.database_urls and not settings.database.exists():
        raise ConfigurationError(
            f"{settings.database} is not there; if the database is a PostgreSQL server's, say so by LICET_DATABASE_URLS"
        )
    # A crash may have left the database at any of the trust roots that lead on.
    led = [rotation.follow(ahead[:number], trust) for number in range(len(ahead) + 1)]
    owner = open_database(settings, Role.OWNER, every_tenant=True)
    try:
        with read_transaction(owner, rotation.TENANT) as connection:
            found = belonging.identity_in(connection)
            if found is None:
                raise ConfigurationError(
                    "the database holds no installation that was served by this version: serve it once"
                )
            if found not in {belonging.Identity.of(root) for root in led}:
                belonging.verify_own(connection, belonging.Identity.of(trust))
    finally:
        owner.dispose()


def _ahead(settings: Settings, before: TrustRoot, *arguments: str) -> list[bytes]:
    """Of the statements that the signer has, after it did something, those that follow this trust root."""
    return rotation.beyond(_signer(settings, *(arguments or ["--rotations"])), before)


def _signer(settings: Settings, *arguments: str) -> list[bytes]:
    """Run the signer's program, as its user; the statements that it prints."""
    command = [sys.executable, "-P", "-m", "licet_attestations.signer", "--data", str(settings.signer_data), *arguments]
    with _passphrase(settings) as descriptor:
        given = [] if descriptor is None else ["--passphrase-fd", str(descriptor)]
        as_signer = launch_command(settings, find_separation(settings), "signer", [*command, *given])
        try:
            ended = subprocess.run(
                as_signer,
                capture_output=True,
                check=False,
                timeout=_WITHIN_S,
                pass_fds=() if descriptor is None else (descriptor,),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigurationError(f"the signer's program did not end: {error}") from error
    if ended.returncode:
        told = (ended.stderr.decode(errors="replace").strip().splitlines() or ["it ended"])[-1]
        raise ConfigurationError(f"the signer did nothing: {told}")
    return ended.stdout.splitlines()


@contextmanager
def _passphrase(settings: Settings) -> Iterator[int | None]:
    """The passphrase in a pipe: its file need not be the signer's own."""
    if not settings.key_passphrase_file:
        yield None
        return
    reader, writer = os.pipe()
    try:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(read_passphrase(Path(settings.key_passphrase_file)))  # Far less than a pipe holds.
        yield reader
    finally:
        os.close(reader)


def _publish(settings: Settings, before: TrustRoot, statements: list[bytes]) -> Rotated:
    if not statements:
        raise ConfigurationError(
            f"what the signer keeps does not lead on from {settings.trust_root}: is it the signer's?"
        )
    after = rotation.follow(statements, before)
    # The log does not run behind the moment from which the new key counts.
    time.sleep(max(0.0, max(key.valid_from_ms for key in after.trusted) / 1000 - time.time()))
    engine = open_database(settings, Role.SEQUENCER, pool_size=2)
    sequencer = Sequencer(engine)
    try:
        digests = tuple(log_attestation(sequencer, rotation.TENANT, statement) for statement in statements)
    finally:
        sequencer.close()
        engine.dispose()
    owner = open_database(settings, Role.OWNER, every_tenant=True)
    try:
        with write_transaction(owner, rotation.TENANT) as connection:
            belonging.renew(connection, belonging.Identity.of(before), belonging.Identity.of(after))
    finally:
        owner.dispose()
    # Last: until it stands, the next try begins again where this one did, and finds everything done but this.
    replace_durably(settings.trust_root, after.to_json())
    return Rotated(before, after, tuple(statements), digests)
