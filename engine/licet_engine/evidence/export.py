"""The evidence archive of a tenant: its whole log up to a signed checkpoint, and everything the log names.

Rules kept here:

- The archive ends where the checkpoint does; what is appended meanwhile is in the next one.
- Everything is streamed from the database, entry by entry; only digests are kept in memory.
- The isolation answer is computed from the entries of the archive itself, and signed beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import Engine
from sqlmodel import select

from licet_adapters.guard import WarrantGuard
from licet_attestations import canonical, evidence
from licet_attestations.checkpoint import parse_note
from licet_attestations.isolation import isolation
from licet_attestations.leaf import Leaf
from licet_attestations.statement import ISOLATION, Statement, Subject
from licet_attestations.trustroot import TrustRoot
from licet_engine.domain.errors import Unavailable
from licet_engine.log import store
from licet_engine.store.db import read_transaction, tenant_session
from licet_engine.store.tables import Attestation, FactBlob, PolicyBundle

if TYPE_CHECKING:
    from pathlib import Path

_ENTRIES_AT_ONCE: Final = 500


class Exporting(Protocol):
    """What of a deed is needed here."""

    tenant: str
    id: str
    parameters: dict[str, Any]

    @property
    def spool(self) -> Any:
        """Where the artifact goes."""
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
        door: The internal door, for the checkpoint.
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
        """
        self._guard.admit(
            warrant,
            tenant=deed.tenant,
            operation="evidence.export",
            parameters=deed.parameters,
            resources={"tenant": deed.tenant},
        )
        told = self._door.call("checkpoint", tenant=deed.tenant)
        size, note = told["size"], told["note"]
        with deed.spool.new_artifact(deed.tenant, deed.id, "zip") as path:
            built = self._build(path, deed.tenant, size, note)
        return {
            "artifact": f"{deed.id}.zip",
            "entries": size,
            "manifest_digest": built.manifest_digest_hex,
        }

    def _build(self, path: Path, tenant: str, size: int, note: str) -> evidence.BuiltArchive:
        facts, bundles, attestations = self._named(tenant, size)
        return evidence.build_archive(
            path,
            tenant=tenant,
            origin=self._trust_root.origin(tenant),
            leaves=(entry.header.encode() for entry in self._entries(tenant, size)),
            records=((entry.index, entry.salt, entry.record) for entry in self._entries(tenant, size)),
            facts=self._bodies(tenant, sorted(facts), _fact_body),
            bundles=self._bodies(tenant, sorted(bundles), _bundle_body),
            attestations=self._bodies(tenant, sorted(attestations), _envelope),
            checkpoint_note=note,
            sign_export=lambda statement: self._signer.attest(tenant, statement),
            isolation=self._isolation(tenant, size, note),
        )

    def _entries(self, tenant: str, size: int) -> Iterator[store.Entry]:
        for first in range(0, size, _ENTRIES_AT_ONCE):
            with read_transaction(self._engine, tenant) as connection:
                yield from store.read_entries(connection, tenant, first, min(_ENTRIES_AT_ONCE, size - first))

    def _named(self, tenant: str, size: int) -> tuple[set[str], set[str], set[str]]:
        """Digests of the facts, bundles and attestations that the log names."""
        facts: set[str] = set()
        bundles: set[str] = set()
        attestations: set[str] = set()
        for entry in self._entries(tenant, size):
            kind = Leaf.from_bytes(entry.header.encode()).kind
            if entry.record is None or kind not in {"decision", "attestation"}:
                continue
            record = canonical.loads(entry.record)
            if kind == "decision":
                facts.update(record["facts"])
                bundles.add(record["bundle"])
            else:
                attestations.add(record["digest"])
        return facts, bundles, attestations

    def _bodies(self, tenant: str, digests: list[str], read: Callable[[Any, str], bytes | None]) -> Iterator[bytes]:
        for digest_hex in digests:
            with tenant_session(self._engine, tenant) as session:
                body = read(session, digest_hex)
            if body is None:
                raise Unavailable(f"{digest_hex} is named in the log of {tenant} but is not stored: run licet log fsck")
            yield body

    def _isolation(self, tenant: str, size: int, note: str) -> bytes:
        def entries() -> Iterator[tuple[Leaf, dict[str, Any] | None]]:
            for entry in self._entries(tenant, size):
                record = None if entry.record is None else canonical.loads(entry.record)
                yield Leaf.from_bytes(entry.header.encode()), record

        head, _, _ = parse_note(note)
        answer = isolation(tenant, entries())
        predicate = answer.to_predicate()
        subject = Subject(self._trust_root.origin(tenant), head.root.hex())
        return self._signer.attest(tenant, Statement((subject,), ISOLATION, predicate).to_bytes())


def _fact_body(session: Any, digest_hex: str) -> bytes | None:
    row = session.exec(select(FactBlob).where(FactBlob.digest_hex == digest_hex)).first()
    return None if row is None else row.body


def _bundle_body(session: Any, digest_hex: str) -> bytes | None:
    row = session.exec(select(PolicyBundle).where(PolicyBundle.digest_hex == digest_hex)).first()
    return None if row is None else row.body


def _envelope(session: Any, digest_hex: str) -> bytes | None:
    row = session.exec(select(Attestation).where(Attestation.digest_hex == digest_hex)).first()
    return None if row is None else row.envelope.encode()
