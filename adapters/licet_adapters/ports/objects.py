"""The port of object stores."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

from licet_adapters.errors import InputRefused
from licet_adapters.ports.base import Parameters, check_digest_hex, check_tenant

if TYPE_CHECKING:
    from pathlib import Path


_OBJECT_ID = re.compile(r"[a-z0-9][A-Za-z0-9._@-]*(/[A-Za-z0-9_][A-Za-z0-9._@-]*)*\Z")
_MAX_OBJECT_ID_CHARS = 240


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectRef:
    """One immutable object of a tenant.

    Attributes:
        tenant: Owner.
        object_id: Chosen by the caller, unique in the tenant, never reused for other content while it exists
            (``northbank/hmda``, ``northbank/credit-risk@1/model.safetensors``).
        digest_hex: SHA-256 of the plaintext.
        size_bytes: Length of the plaintext.
    """

    tenant: str
    object_id: str
    digest_hex: str
    size_bytes: int

    def __post_init__(self) -> None:
        check_tenant(self.tenant)
        check_digest_hex(self.digest_hex)
        if len(self.object_id) > _MAX_OBJECT_ID_CHARS or not _OBJECT_ID.match(self.object_id):
            raise InputRefused("not an object id", code="input.object-id")
        if self.size_bytes < 0:
            raise InputRefused("an object's size is not negative", code="input.size")

    def resources(self) -> dict[str, str]:
        """What a warrant for this object must name."""
        return {"object": self.object_id, "digest": self.digest_hex}


@dataclass(frozen=True, kw_only=True, slots=True)
class PutOutcome:
    """What a put did.

    Attributes:
        created: False if the very same object was there already (If-None-Match).
        stored_bytes: Size of the sealed file.
    """

    created: bool
    stored_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldOutcome:
    """What came of a hold, or of lifting one.

    Attributes:
        held: Whether it lies there now.
        kept_by: Who keeps the bytes: ``object-lock`` (the store, even from its owner), ``adapter`` (it removes nothing that
            is held; whoever reaches the bytes without it can), or ``none`` (the store has no such thing: policy alone).
    """

    held: bool
    kept_by: str


class ObjectStore(Protocol):
    """Adapter ``local-objects`` and its peers; operations ``objects.put|get|delete|hold|lift``."""

    def put(self, warrant: bytes, ref: ObjectRef, source: BinaryIO, parameters: Parameters) -> PutOutcome:
        """Seal and store ``source``; all of it becomes visible at once, or none.

        Raises:
            WarrantRefused: See the guard.
            InputRefused: ``source`` has another digest or size than ``ref``.
            Conflict: Other content stands under this id.
        """
        ...

    def get(self, warrant: bytes, ref: ObjectRef, target: Path, parameters: Parameters) -> None:
        """Write the plaintext to ``target`` (0600, must not exist); it appears only after all of it was verified.

        Raises:
            WarrantRefused: See the guard.
            NotFound: No such object.
            IntegrityError: Not the bytes that were put.
        """
        ...

    def read_range(self, warrant: bytes, ref: ObjectRef, start: int, length: int, parameters: Parameters) -> bytes:
        """Return ``length`` plaintext bytes from ``start`` (fewer at the end), each chunk verified; under ``objects.get``."""
        ...

    def delete(self, warrant: bytes, ref: ObjectRef, parameters: Parameters) -> bool:
        """Remove the object durably; return whether it was there.

        Raises:
            Conflict: A hold or a retention keeps it; nothing was removed.
        """
        ...

    def hold(self, warrant: bytes, ref: ObjectRef, parameters: Parameters) -> HoldOutcome:
        """Keep the object from removal until ``lift``, by the strongest means there is; doing it again is harmless.

        What is kept is verified to be ``ref``. The warrant must still be live when the place is told.

        Raises:
            WarrantRefused: See the guard; ``expired`` also if its time was over before the place was told.
            Conflict: Other content stands under this id.
            IntegrityError: What stands there is not what was put, or not alone.
        """
        ...

    def lift(self, warrant: bytes, ref: ObjectRef, parameters: Parameters) -> HoldOutcome:
        """End ``hold``; doing it again is harmless. As there, the warrant must be live when the place is told."""
        ...
