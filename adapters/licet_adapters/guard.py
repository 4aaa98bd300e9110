"""The warrant guard: no warrant, no run. Every adapter admits its own warrants, and trusts no caller to have done so.

Rules kept here:

- A warrant is verified whole (signature, time, adapter, operation, tenant, parameters, resources, and that its decision
  stands in the tenant's log under a signed checkpoint) against the trust root this process was started with.
- It is marked spent, durably, *before* ``admit`` returns. A crash after the mark and before the act costs a warrant,
  never a second act.
- It is then written into the journal of accesses, numbered without gaps, as durably (`licet_adapters.journal`).
- A mark goes only when its warrant can never be admitted again, whatever a clock says: see ``forget``.

Why a spent warrant stays spent after its mark is gone. Beside the marks stands a *horizon*: the latest end of any
warrant whose mark was removed. It is durable before a mark goes, and it never falls. A warrant that ends at the horizon
or before it is refused, whether or not its mark is there, and whatever this machine's clock says; so a clock that jumps
back makes no spent warrant whole. The horizon is looked at after the mark is made: whoever found no mark because it was
being removed finds the horizon that was written before. The horizon is the end of a warrant that was signed, so a clock
that jumps forward cannot push it past warrants that are still to come by more than a warrant's life.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Final

from licet_adapters.errors import InputRefused, Unavailable, WarrantRefused
from licet_adapters.journal import note_access
from licet_attestations import canonical
from licet_attestations.errors import FormatError, WarrantError
from licet_attestations.signer.files import make_private_directory, replace_durably, sync_directory
from licet_attestations.warrant import MAX_CLOCK_SKEW_MS, MAX_LIFETIME_MS, verify_warrant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from licet_adapters.ports import Clock, Parameters
    from licet_attestations.trustroot import TrustRoot
    from licet_attestations.warrant import Warrant


_SPENT: Final = "spent"
_HORIZON: Final = "horizon"
_MAX_FORGOTTEN: Final = 1000


class WarrantGuard:
    """Admits warrants for one adapter instance.

    Args:
        adapter: Instance name that warrants must bear (``local-objects``).
        trust_root: Public keys; pinned, never from the warrant.
        state_dir: Where spent marks are kept; shared by all processes of this instance.
        clock: Time.
    """

    def __init__(self, adapter: str, trust_root: TrustRoot, state_dir: Path, clock: Clock) -> None:
        self._adapter = adapter
        self._trust_root = trust_root
        self._dir = state_dir / _SPENT
        self._journal = state_dir
        self._clock = clock

    def admit(
        self, envelope: bytes, *, tenant: str, operation: str, parameters: Parameters, resources: Mapping[str, str]
    ) -> Warrant:
        """Verify the warrant for exactly this act and mark it spent.

        Args:
            envelope: The warrant as the signer made it.
            tenant: Whose things this act touches.
            operation: For example ``objects.put``.
            parameters: The operation's.
            resources: What this act touches; the warrant must name exactly this.

        Returns:
            The warrant; it will never be admitted again.

        Raises:
            WarrantRefused: It is not for this act, or no longer, or was used. Nothing may be done.
            InputRefused: ``parameters`` are not canonical JSON.
            Unavailable: The mark could not be written. Nothing may be done.
        """
        try:
            warrant = verify_warrant(
                envelope,
                trust=self._trust_root,
                adapter=self._adapter,
                operation=operation,
                parameters=parameters,
                resources=resources,
                now_ms=self._clock(),
            )
        except WarrantError as error:
            raise WarrantRefused(error.reason, f"the warrant is refused: {error}") from error
        except FormatError as error:
            raise InputRefused(f"the parameters are not canonical JSON: {error}", code="input.parameters") from error
        if warrant.tenant != tenant:
            raise WarrantRefused("other-resource", "the warrant is another tenant's")
        self._spend(warrant)
        note_access(self._journal, warrant, self._clock())
        return warrant

    def check_live(self, warrant: Warrant) -> None:
        """Raise ``WarrantRefused`` if an admitted warrant's time is over by now: for acts that must not come late."""
        if self._clock() >= warrant.expires_at_ms:
            raise WarrantRefused("expired", "the warrant's time was over before the act; nothing more is done under it")

    def _spend(self, warrant: Warrant) -> None:
        name = hashlib.sha256(warrant.id.encode()).hexdigest()
        directory = self._dir / name[:2]
        mark = {
            "id": warrant.id,
            "operation": warrant.operation,
            "operation_id": warrant.operation_id,
            "expires_at_ms": warrant.expires_at_ms,
            "spent_at_ms": self._clock(),
            "tenant": warrant.tenant,
        }
        try:
            make_private_directory(directory)
            # O_EXCL is the test and the mark in one: of two processes one loses.
            fd = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, canonical.dumps(mark))
                os.fsync(fd)
            finally:
                os.close(fd)
            sync_directory(directory)
            horizon_ms = read_horizon(self._dir)
        except FileExistsError as error:
            raise WarrantRefused("spent", "the warrant was used before") from error
        except OSError as error:
            # The mark may or may not be there: if it is, this warrant is lost, and another must be asked for.
            raise Unavailable(f"the warrant cannot be marked spent: {error.strerror}") from error
        if warrant.expires_at_ms <= horizon_ms:
            raise WarrantRefused("spent", "the warrant is so old that its mark may be gone: it counts as used")


def spent_folders(adapters_dir: Path) -> list[Path]:
    """Where the guards of all adapter instances keep their marks: in the instance's own folder, or in its ``state``."""
    return sorted([*adapters_dir.glob(f"*/{_SPENT}"), *adapters_dir.glob(f"*/state/{_SPENT}")])


def read_horizon(spent_dir: Path) -> int:
    """The latest end of a warrant whose mark was removed; 0 if none was.

    Raises:
        Unavailable: It cannot be read: nothing may be admitted.
    """
    try:
        return int((spent_dir / _HORIZON).read_text("ascii"))
    except FileNotFoundError:
        return 0
    except ValueError as error:
        raise Unavailable(
            f"{spent_dir / _HORIZON} is damaged: put the time there before which nothing counts"
        ) from error


def forget(spent_dir: Path, now_ms: int, ttl_ms: int) -> int:
    """Remove marks whose warrants ended long ago, the horizon first.

    Args:
        spent_dir: Folder of the marks of one adapter instance.
        now_ms: The time.
        ttl_ms: How long after its warrant's end a mark is kept.

    Returns:
        How many were removed; at most a thousand, so that no call takes long.

    Raises:
        Unavailable: A mark or the horizon cannot be read or written; no mark was removed after that.
    """
    old = [(path, end_ms) for path, end_ms in _marks(spent_dir) if end_ms + ttl_ms < now_ms]
    del old[_MAX_FORGOTTEN:]
    if not old:
        return 0
    horizon_ms = max(end_ms for _, end_ms in old)
    try:
        if horizon_ms > read_horizon(spent_dir):
            replace_durably(spent_dir / _HORIZON, str(horizon_ms).encode())
        for path, _ in old:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise Unavailable(f"{spent_dir}: marks cannot be removed: {error.strerror}") from error
    return len(old)


def _marks(spent_dir: Path) -> Iterator[tuple[Path, int]]:
    """Every mark, with the latest moment at which its warrant can have ended."""
    for path in spent_dir.glob("[0-9a-f][0-9a-f]/*"):
        try:
            mark = canonical.loads(path.read_bytes())
            # A mark of an older version names no end: its warrant was live when it was spent.
            end_ms = mark.get("expires_at_ms", mark["spent_at_ms"] + MAX_LIFETIME_MS + MAX_CLOCK_SKEW_MS)
        except (OSError, FormatError, KeyError, AttributeError):
            continue  # Half a mark, left by a crash, marks its warrant as spent like a whole one; it stays.
        if type(end_ms) is int:
            yield path, end_ms
