"""The warrant guard: no warrant, no run. Every adapter admits its own warrants, and trusts no caller to have done so.

Rules kept here:

- A warrant is verified whole (signature, time, adapter, operation, tenant, parameters, resources, and that its decision
  stands in the tenant's log under a signed checkpoint) against the trust root this process was started with.
- It is marked spent, durably, *before* ``admit`` returns. A crash after the mark and before the act costs a warrant,
  never a second act.
- A mark is never removed: a clock that jumps back cannot make a spent warrant whole again.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from licet_adapters.errors import InputRefused, Unavailable, WarrantRefused
from licet_attestations import canonical
from licet_attestations.errors import FormatError, WarrantError
from licet_attestations.signer.files import make_private_directory, sync_directory
from licet_attestations.warrant import verify_warrant

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from licet_adapters.ports import Clock, Parameters
    from licet_attestations.trustroot import TrustRoot
    from licet_attestations.warrant import Warrant


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
        self._dir = state_dir / "spent"
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
        return warrant

    def _spend(self, warrant: Warrant) -> None:
        name = hashlib.sha256(warrant.id.encode()).hexdigest()
        directory = self._dir / name[:2]
        mark = {
            "id": warrant.id,
            "operation": warrant.operation,
            "operation_id": warrant.operation_id,
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
        except FileExistsError as error:
            raise WarrantRefused("spent", "the warrant was used before") from error
        except OSError as error:
            # The mark may or may not be there: if it is, this warrant is lost, and another must be asked for.
            raise Unavailable(f"the warrant cannot be marked spent: {error.strerror}") from error
