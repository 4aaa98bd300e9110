"""The effect ledger: what an adapter already did, so that a retry repeats no side effect.

Rules kept here:

- An effect is identified by tenant, operation and step, and bound to adapter operation, parameters and resources: the
  same operation and step with other content is a conflict, never a replay of a foreign outcome.
- One attempt at a time holds an effect (a lock the kernel drops when its process dies). An attempt older than the
  newest that began is refused: a worker that woke up late cannot act over its successor.
- An outcome is recorded durably after the effect and before it is returned. A crash between the two means that the
  effect is done again; so every effect must itself be safe to do again for the same operation and step.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from typing import TYPE_CHECKING, Any

from licet_adapters.errors import Conflict, Unavailable
from licet_adapters.ports import check_tenant
from licet_attestations import canonical
from licet_attestations.signer.files import make_private_directory, replace_durably

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from licet_attestations.warrant import Warrant


class Effect:
    """One effect, held by this attempt.

    Attributes:
        outcome: What it gave when it was done; None if it was not done yet.
        intended: What an attempt was about to do, whose end nobody saw; None if none was, or where it is of no use to know.
    """

    def __init__(self, path: Path, binding_hex: str, attempt: int, state: Mapping[str, Any] | None) -> None:
        self._path = path
        self._binding_hex = binding_hex
        self._attempt = attempt
        self.outcome: dict[str, Any] | None = None if state is None else state["outcome"]
        self.intended: dict[str, Any] | None = None if state is None else state.get("intended")

    def intend(self, outcome: Mapping[str, Any]) -> None:
        """Record durably what will be given, before it is done: where a crash falls between, it can be told whether it was."""
        self.intended = dict(outcome)
        self._write(None)

    def record(self, outcome: Mapping[str, Any]) -> dict[str, Any]:
        """Record durably that the effect was done and what it gave; return the outcome."""
        recorded = dict(outcome)
        self._write(recorded)
        self.outcome = recorded
        return recorded

    def _write(self, outcome: dict[str, Any] | None) -> None:
        state = {"v": 1, "binding": self._binding_hex, "attempt": self._attempt, "outcome": outcome}
        if self.intended is not None:
            state["intended"] = self.intended
        try:
            replace_durably(self._path, canonical.dumps(state))
        except OSError as error:
            raise Unavailable(f"the effect ledger cannot be written: {error.strerror}") from error


class EffectLedger:
    """The effects of one adapter instance, under ``state_dir``."""

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir / "effects"

    def recorded(self, warrant: Warrant) -> dict[str, Any] | None:
        """Return the outcome of the effect this warrant is for, if it was done."""
        state = self._read(self._path(warrant), _binding_hex(warrant))
        return None if state is None else state["outcome"]

    def looked_up(self, tenant: str, operation_id: str, step: str) -> Effect | None:
        """Return what is known of an effect, for whoever has no warrant for it any more; None if it never began.

        It is not held: it is only to be read.
        """
        path = self._path_of(tenant, operation_id, step)
        state = self._read(path, None)
        return None if state is None else Effect(path, state["binding"], state["attempt"], state)

    @contextlib.contextmanager
    def once(self, warrant: Warrant) -> Iterator[Effect]:
        """Hold the effect this warrant is for while in the block.

        The block returns ``effect.outcome`` if there is one; else it acts and calls ``effect.record``.

        Raises:
            Conflict: Another attempt is at work, a newer one began, or the effect is bound to other content.
            Unavailable: The ledger cannot be written.
        """
        path, binding_hex = self._path(warrant), _binding_hex(warrant)
        try:
            make_private_directory(path.parent)
            lock_fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(f"the effect ledger cannot be opened: {error.strerror}") from error
        try:
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Conflict("another attempt at this step is at work", code="conflict.busy") from error
            state = self._read(path, binding_hex)
            if state is not None and state["attempt"] > warrant.attempt:
                raise Conflict("a newer attempt at this step began", code="conflict.superseded")
            effect = Effect(path, binding_hex, warrant.attempt, state)
            if effect.outcome is None and (state is None or state["attempt"] < warrant.attempt):
                # From here on no older attempt may act.
                effect._write(None)  # noqa: SLF001  # The ledger and its effect are one thing in two classes.
            yield effect
        finally:
            os.close(lock_fd)

    def _path(self, warrant: Warrant) -> Path:
        return self._path_of(warrant.tenant, warrant.operation_id, warrant.step)

    def _path_of(self, tenant: str, operation_id: str, step: str) -> Path:
        name = hashlib.sha256(canonical.dumps([operation_id, step])).hexdigest()
        return self._dir / check_tenant(tenant) / name[:2] / f"{name}.json"

    def _read(self, path: Path, binding_hex: str | None) -> dict[str, Any] | None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(f"the effect ledger cannot be read: {error.strerror}") from error
        state: dict[str, Any] = canonical.loads(data)
        if binding_hex is not None and state["binding"] != binding_hex:
            raise Conflict("this operation and step were used for something else", code="conflict.other-effect")
        return state


def _binding_hex(warrant: Warrant) -> str:
    bound = [warrant.adapter, warrant.operation, warrant.parameters_digest_hex, dict(warrant.resources)]
    return hashlib.sha256(canonical.dumps(bound)).hexdigest()
