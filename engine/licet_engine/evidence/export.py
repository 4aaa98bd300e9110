"""The evidence archive of a tenant: its log between two times, up to a signed checkpoint, and everything the log names.

Rules kept here:

- The archive ends where the checkpoint does; what is appended meanwhile is in the next one.
- Everything is streamed from the database, chunk by chunk.
- An attempt that was cut off is gone on with, under the checkpoint that it had.
- The isolation answer is computed from the entries of the archive itself, and signed beside it; the export statement is logged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import Engine, select

from licet_adapters.guard import WarrantGuard
from licet_attestations import archive, canonical, dsse, erasure, evidence
from licet_attestations.checkpoint import parse_note
from licet_attestations.entry_steps import MAX_BUNDLE_BYTES
from licet_attestations.errors import ErasedSince, FormatError, VerificationError
from licet_attestations.isolation import Isolation
from licet_attestations.isolation_pair import BUNDLE_SUBJECT, examined_policies
from licet_attestations.statement import ISOLATION, TEST_RESULT, Statement, Subject
from licet_attestations.trustroot import TrustRoot
from licet_attestations.window import Window
from licet_engine.domain.errors import Conflict, Unavailable
from licet_engine.evidence.contents import Scope, Seen
from licet_engine.evidence.report import derived
from licet_engine.log import store
from licet_engine.store.db import read_transaction
from licet_engine.store.tables import Attestation, FactBlob, PolicyBundle

if TYPE_CHECKING:
    from pathlib import Path

_AT_ONCE: Final = 500
_ATTEMPTS: Final = 3
_MAX_EXAMINATIONS: Final = 1000
_FACTS: Final = store.table_of(FactBlob)
_ATTESTATIONS: Final = store.table_of(Attestation)
_BUNDLES: Final = store.table_of(PolicyBundle)


class Exporting(Protocol):
    """What of a deed is needed here."""

    tenant: str
    id: str
    parameters: dict[str, Any]

    @property
    def spool(self) -> Any:
        """Where the artifact goes."""
        ...

    def now_ms(self) -> int:
        """The time."""
        ...

    def went_on(self, done: int, count: int) -> None:
        """Tell how far it is."""
        ...

    def log_attestation(self, envelope: bytes) -> str:
        """Have an attestation logged."""
        ...


class Attester(Protocol):
    """What of the signer is needed here."""

    def attest(self, tenant: str, statement_bytes: bytes) -> bytes:
        """Sign a statement."""
        ...


class Exporter:
    """Writes evidence archives.

    Args:
        engine: Of the store; only read.
        door: The internal door, for the checkpoint and the directory.
        signer: Signs the export statement and the isolation answer.
        trust_root: Names the log's origin.
        guard: Admits the warrants of exports.
    """

    def __init__(self, engine: Engine, door: Any, signer: Attester, trust_root: TrustRoot, guard: WarrantGuard) -> None:
        self._engine = engine
        self._door = door
        self._signer = signer
        self._trust_root = trust_root
        self._guard = guard

    def export(self, deed: Exporting, warrant: bytes) -> dict[str, Any]:
        """Write the archive of the deed's tenant as its artifact; return what it is.

        Raises:
            WarrantRefused: The warrant is not for this, or was used.
            Conflict: The log has not what an archive must have, such as a record that is missing without having been erased.
        """
        self._guard.admit(
            warrant,
            tenant=deed.tenant,
            operation="evidence.export",
            parameters=deed.parameters,
            resources={"tenant": deed.tenant},
        )
        signed: list[bytes] = []

        def sign_export(statement: bytes) -> bytes:
            signed.append(self._signer.attest(deed.tenant, statement))
            return signed[-1]

        with deed.spool.lasting_artifact(deed.tenant, deed.id, "zip") as path:
            built = self._build_whole(path, deed, sign_export)
        return {
            "artifact": f"{deed.id}.zip",
            "first": built.first,
            "entries": built.end - built.first,
            "size": built.size,
            "erased": built.erased,
            "manifest_digest": built.manifest_digest_hex,
            "attestation": deed.log_attestation(signed[0]),
        }

    def _build_whole(self, path: Path, deed: Exporting, sign_export: evidence.SignExport) -> evidence.BuiltArchive:
        """Build it, under a newer checkpoint where somebody erased a record meanwhile."""
        for _ in range(_ATTEMPTS):
            try:
                return self._build(path, deed, sign_export)
            except ErasedSince as error:
                evidence.part_of(path).unlink(missing_ok=True)
                reason = str(error)
            except (FormatError, VerificationError) as error:
                raise Conflict(f"no archive can be made of it: {error}", code="log-incomplete") from error
        raise Conflict(f"{reason}: if nobody is erasing just now, run licet log fsck", code="log-incomplete")

    def _build(self, path: Path, deed: Exporting, sign_export: evidence.SignExport) -> evidence.BuiltArchive:
        tenant = deed.tenant
        begun = evidence.begun(path)
        window, note = (
            begun if begun is not None and self._is_of(begun[0], deed) else self._begin(tenant, deed.parameters)
        )
        subject = Subject(window.origin, parse_note(note)[0].root.hex())

        def sign_isolation(answer: Isolation) -> bytes:
            statement = Statement((subject,), ISOLATION, answer.to_predicate())
            return self._signer.attest(tenant, statement.to_bytes())

        opening = self._door.call("directory", tenant=tenant, size=window.size)["file"]
        return evidence.build_archive(
            path,
            window,
            StoredLog(self._engine, tenant, window.size),
            checkpoint_note=note,
            sign_export=sign_export,
            exported_at_ms=deed.now_ms(),
            sign_isolation=sign_isolation,
            directory=None if opening is None else opening.encode(),
            derive=lambda contents: derived(ArchiveContents(contents, self._trust_root.instance)),
            progress=deed.went_on,
        )

    def _is_of(self, window: Window, deed: Exporting) -> bool:
        """Whether what was begun is of this operation's tenant and time."""
        asked = (deed.tenant, self._trust_root.origin(deed.tenant))
        times = (deed.parameters.get("from_ms"), deed.parameters.get("to_ms"))
        return (window.tenant, window.origin) == asked and (window.from_ms, window.to_ms) == times

    def _begin(self, tenant: str, parameters: dict[str, Any]) -> tuple[Window, str]:
        told = self._door.call("checkpoint", tenant=tenant)
        size, note = told["size"], told["note"]
        from_ms, to_ms = parameters.get("from_ms"), parameters.get("to_ms")
        with read_transaction(self._engine, tenant) as connection:
            # A time before everything, or after it, is none: the window is open there.
            first = 0 if from_ms is None else store.index_at(connection, tenant, from_ms, size)
            end = size if to_ms is None else store.index_at(connection, tenant, to_ms, size)
            if to_ms is not None and end == size:
                raise Unavailable("the newest checkpoint is not past the end of the time asked for; try again later")
            window = Window(
                tenant=tenant,
                origin=self._trust_root.origin(tenant),
                first=first,
                end=end,
                size=size,
                from_ms=from_ms,
                to_ms=to_ms,
                frontier_first=store.frontier_at(connection, tenant, first),
                frontier_end=store.frontier_at(connection, tenant, end),
                consistency=[] if end in {0, size} else store.consistency_proof(connection, tenant, end, size),
            )
        return window, note


class ArchiveContents:
    """What is in an archive, as those see it who make reports of it.

    Args:
        contents: What is written.
        instance: The installation.
    """

    def __init__(self, contents: evidence.Contents, instance: str) -> None:
        window = contents.window
        self._contents = contents
        self.isolation: Mapping[str, Any] = contents.isolation.to_predicate()
        self.scope = Scope(
            instance=instance,
            tenant=window.tenant,
            origin=window.origin,
            first=window.first,
            end=window.end,
            size=window.size,
            root_hex=contents.root.hex(),
            from_ms=window.from_ms,
            to_ms=window.to_ms,
            exported_at_ms=contents.exported_at_ms,
        )

    def entries(self) -> Iterator[Seen]:
        """See `Contents`."""
        for entry in self._contents.entries():
            yield Seen(entry.index, entry.leaf, entry.record)

    def attestations(self) -> Iterator[tuple[str, int, Statement]]:
        """See `Contents`."""
        for chunk in self._contents.entries().chunks():
            for entry in chunk.entries("attestation") if chunk.attestations else ():
                if entry.record is not None:
                    digest_hex = str(entry.record["digest"])
                    payload = dsse.Envelope.from_json(chunk.attestations[digest_hex]).payload
                    yield digest_hex, entry.index, Statement.from_bytes(payload)

    def bundle(self, digest_hex: str) -> Mapping[str, Any]:
        """See `Contents`."""
        data = self._contents.files.read(archive.bundle_name(digest_hex), MAX_BUNDLE_BYTES)
        bundle: Mapping[str, Any] = canonical.loads(data, max_bytes=MAX_BUNDLE_BYTES)
        return bundle


class StoredLog:
    """A tenant's log in the store, as archives are made from it.

    Args:
        engine: Of the store; only read.
        tenant: Whose.
        size: Of the log at the checkpoint.
    """

    def __init__(self, engine: Engine, tenant: str, size: int) -> None:
        self._engine = engine
        self._tenant = tenant
        self._size = size

    def entries(self, first: int, end: int) -> Iterator[evidence.Raw]:
        """The entries, in order."""
        while first < end:
            with read_transaction(self._engine, self._tenant) as connection:
                found = store.read_entries(connection, self._tenant, first, min(_AT_ONCE, end - first))
            if not found:
                raise Unavailable(f"entry {first} of the log of {self._tenant} is not stored: run licet log fsck")
            for entry in found:
                yield evidence.Raw(entry.index, entry.header.encode(), entry.salt, entry.record)
            first += len(found)

    def erasures(self, first: int, end: int) -> Iterator[evidence.Raw]:
        """The entries that erase others, in order."""
        with read_transaction(self._engine, self._tenant) as connection:
            found = store.indexes_of_kind(connection, self._tenant, erasure.KIND, first, end)
        for index in found:
            yield from self.entries(index, index + 1)

    def erased_in(self, first: int, end: int) -> set[int]:
        """Entries whose records are erased."""
        records = store.RECORDS.c
        query = select(records.leaf_index).where(
            records.tenant_id == self._tenant, records.leaf_index.between(first, end - 1), records.salt.is_(None)
        )
        with read_transaction(self._engine, self._tenant) as connection:
            return set(connection.execute(query).scalars())

    def proof(self, index: int) -> list[bytes]:
        """Proof of inclusion of an entry."""
        with read_transaction(self._engine, self._tenant) as connection:
            return store.inclusion_proof(connection, self._tenant, index, self._size)

    def facts_of(self, digests: Sequence[str]) -> Iterator[bytes]:
        """Facts by digest."""
        return self._bodies(_FACTS, _FACTS.c.body, digests, bytes)

    def attestations_of(self, digests: Sequence[str]) -> Iterator[bytes]:
        """Envelopes by digest of their payload."""
        return self._bodies(_ATTESTATIONS, _ATTESTATIONS.c.envelope, digests, str.encode)

    def bundle(self, digest_hex: str) -> bytes:
        """Policies by digest."""
        (body,) = self._bodies(_BUNDLES, _BUNDLES.c.body, [digest_hex], bytes)
        return body

    def examinations(self, bundles: Collection[str]) -> Iterator[int]:
        """The newest attestation of each of whether it keeps tenants apart, by its entry."""
        query = (
            select(_ATTESTATIONS.c.envelope, _ATTESTATIONS.c.leaf_index)
            .where(
                _ATTESTATIONS.c.tenant_id == self._tenant,
                _ATTESTATIONS.c.subject == BUNDLE_SUBJECT,
                _ATTESTATIONS.c.predicate_type == TEST_RESULT,
                _ATTESTATIONS.c.leaf_index < self._size,
            )
            .order_by(_ATTESTATIONS.c.leaf_index.desc())
            .limit(_MAX_EXAMINATIONS)
        )
        wanted = set(bundles)
        with read_transaction(self._engine, self._tenant) as connection:
            rows = connection.execute(query).all() if wanted else []
        for envelope, index in rows:
            found = (
                wanted
                & examined_policies(Statement.from_bytes(dsse.Envelope.from_json(envelope.encode()).payload)).keys()
            )
            if found:
                wanted -= found
                yield index

    def _bodies(
        self, table: Any, column: Any, digests: Sequence[str], encode: Callable[[Any], bytes]
    ) -> Iterator[bytes]:
        for first in range(0, len(digests), _AT_ONCE):
            wanted = digests[first : first + _AT_ONCE]
            query = select(table.c.digest_hex, column).where(
                table.c.tenant_id == self._tenant, table.c.digest_hex.in_(wanted)
            )
            with read_transaction(self._engine, self._tenant) as connection:
                found: dict[str, Any] = {row[0]: row[1] for row in connection.execute(query)}
            for digest_hex in wanted:
                if digest_hex not in found:
                    raise Unavailable(
                        f"{digest_hex} is named in the log of {self._tenant} but is not stored: run licet log fsck"
                    )
                yield encode(found[digest_hex])
