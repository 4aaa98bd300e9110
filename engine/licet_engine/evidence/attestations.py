"""The attestations of a tenant: listed, given out with the proof that they are logged, and made of log entries on demand.

Rules kept here:

- What is given out is what was signed, byte for byte, with the entry of the log that names it and the proof of that entry.
- A decision, or policies that came into force, are attested by the signer of the entry alone, whose proof it verifies itself; the
  statement is logged before it is given out. Of one entry one statement is made: asked again, it is given again.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final, Protocol

from sqlalchemy import Connection, Engine, Select, select

from licet_attestations.leaf import Leaf
from licet_attestations.logged import EVENTS
from licet_attestations.rotation import KINDS
from licet_attestations.statement import CYCLONEDX, DECISION, EXPORT, POLICY, PREDICATE_TYPES, TRAFFIC
from licet_attestations.tlogproof import TlogProof
from licet_engine.domain.errors import Erased, InvalidInput, Unavailable
from licet_engine.domain.refs import PLATFORM
from licet_engine.evidence.attesting import log_attestation
from licet_engine.log import store
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.witnesses import Witnesses
from licet_engine.store.db import read_transaction
from licet_engine.store.tables import Attestation, Decision

NAMES: Final = {
    "approval": "urn:licet:approval:v1",
    "decision": DECISION,
    "deletion": "urn:licet:deletion:v1",
    "deployment": "urn:licet:deployment:v1",
    "export": EXPORT,
    "isolation": "urn:licet:isolation:v2",
    "key-compromise": "urn:licet:key-compromise:v1",
    "key-rotation": "urn:licet:key-rotation:v1",
    "model-bom": CYCLONEDX,
    "policy": POLICY,
    "promotion": "https://slsa.dev/verification_summary/v1",
    "test-result": "https://in-toto.io/attestation/test-result/v0.1",
    "traffic": TRAFFIC,
    "training": "https://slsa.dev/provenance/v1",
    "warrant": "urn:licet:warrant:v1",
}
"""What people call the kinds, and their predicate types."""

MAX_ROWS: Final = 1000
_AT_ONCE: Final = 100
_MAX_PAGES: Final = 10
_ROTATIONS_KEPT_S: Final = 60.0
_LEAST_DIGEST_CHARS, _DIGEST_CHARS = 8, 64
_WAIT_FOR_WITNESSES_S: Final = 10.0
_AFTER_DECISION: Final = 8
"""Within so many entries after an activation's decision its own entry follows: they are one submission."""
_ACTIVATIONS: Final = ("policy.activate", "policy.roll-back")
_ROWS: Final = store.table_of(Attestation)
_DECISIONS: Final = store.table_of(Decision)


class EntrySigner(Protocol):
    """What of the signer is needed here."""

    def attest_entry(
        self,
        *,
        tenant: str,
        leaf: str,
        leaf_index: int,
        salt: bytes,
        record: str,
        proof: Sequence[bytes],
        checkpoint: str,
    ) -> bytes:
        """Sign what an entry says whose proof it verified."""
        ...


class Attestations:
    """Gives out attestations.

    Args:
        engine: Of the store; only read.
        sequencer: Logs what is made on demand.
        witnesses: Have the checkpoints that proofs end in.
        signer: Makes statements of entries.
    """

    def __init__(self, engine: Engine, sequencer: Sequencer, witnesses: Witnesses, signer: EntrySigner) -> None:
        self._engine = engine
        self._sequencer = sequencer
        self._witnesses = witnesses
        self._signer = signer
        self._rotations: tuple[float, list[dict[str, Any]]] | None = None
        self._rotations_lock = threading.Lock()

    def newest(self, tenant: str, *, kind: str, subject: str, limit: int) -> list[dict[str, Any]]:
        """The newest attestations of a tenant, warrants left out unless they are asked for.

        Args:
            tenant: Whose.
            kind: One of ``NAMES``; any if empty.
            subject: What the log calls the first thing that it is about, or a version or decision by its number; any if empty.
            limit: How many at most.

        Raises:
            InvalidInput: There is no such kind, or there are too many to look through.
        """
        if kind and kind not in NAMES:
            raise InvalidInput(f"there is no kind {kind[:64]!r} of attestations; there are {', '.join(sorted(NAMES))}")
        types = {NAMES[kind]} if kind else PREDICATE_TYPES - {NAMES["warrant"]}
        query = select(_ROWS).where(_ROWS.c.tenant_id == tenant, _ROWS.c.predicate_type.in_(sorted(types)))
        with read_transaction(self._engine, tenant) as connection:
            told = (_told(row) for row in _newest_first(connection, query))
            return list(islice((one for one in told if not subject or subject in one["about"]), limit))

    def read(self, tenant: str, digest_hex: str) -> dict[str, Any] | None:
        """One attestation as it was signed, and the proof that it is logged; None if there is none.

        Raises:
            Erased: The record of its entry was erased.
            Unavailable: The witnesses that are required did not cosign in time.
        """
        query = select(_ROWS).where(_ROWS.c.tenant_id == tenant, _ROWS.c.digest_hex == digest_hex)
        with read_transaction(self._engine, tenant) as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            return None
        proved = self._proved(tenant, int(row["leaf_index"]))
        return _told(dict(row)) | {"statement": json.loads(row["envelope"]), "logged": proved}

    def rotations(self) -> list[dict[str, Any]]:
        """All rotations and compromises of keys, in their order, each with the entry of the platform's log that names it.

        They are public, as the keys are: so one checkpoint serves for all and is kept, and no witness is waited for.

        Raises:
            Erased: The record of one's entry was erased.
        """
        # Whoever has no token may ask. Keys change while nothing is served, so only the checkpoint's cosignatures grow old.
        with self._rotations_lock:
            now_s = time.monotonic()
            if self._rotations is None or now_s - self._rotations[0] > _ROTATIONS_KEPT_S:
                self._rotations = now_s, self._read_rotations()
            return self._rotations[1]

    def _read_rotations(self) -> list[dict[str, Any]]:
        query = (
            select(_ROWS.c.envelope, _ROWS.c.leaf_index)
            .where(_ROWS.c.tenant_id == PLATFORM, _ROWS.c.predicate_type.in_(sorted(KINDS)))
            .order_by(_ROWS.c.leaf_index)
        )
        with read_transaction(self._engine, PLATFORM) as connection:
            rows = connection.execute(query).all()
        head = self._witnesses.newest(PLATFORM) if rows else (0, "")
        return [
            {"statement": json.loads(row.envelope), "logged": self._proved(PLATFORM, row.leaf_index, head)}
            for row in rows
        ]

    def of_decision(self, tenant: str, leaf_index: int) -> dict[str, Any]:
        """The statement of a decision, made now if there is none yet.

        Args:
            tenant: In whose log.
            leaf_index: Where it stands there.
        """
        return self.of_entry(tenant, leaf_index)

    def of_activation(self, tenant: str, bundle: str) -> dict[str, Any]:
        """The statement that a bundle came into force, of the last time it did.

        Args:
            tenant: Whose policies.
            bundle: The beginning of its digest: at least eight characters.

        Raises:
            InvalidInput: It never did by anybody's decision: it came with the tenant, waits, or is none.
        """
        query = (
            select(_DECISIONS.c.leaf_index)
            .where(
                _DECISIONS.c.tenant_id == tenant,
                _DECISIONS.c.action.in_(_ACTIVATIONS),
                _DECISIONS.c.allowed.is_(True),
            )
            .order_by(_DECISIONS.c.leaf_index.desc())
            .limit(MAX_ROWS)
        )
        is_prefix = _LEAST_DIGEST_CHARS <= len(bundle) <= _DIGEST_CHARS
        with read_transaction(self._engine, tenant) as connection:
            decided = connection.execute(query).scalars().all() if is_prefix else ()
            entries = (_activation(connection, tenant, leaf_index, bundle) for leaf_index in decided)
            found = next((index for index in entries if index is not None), None)
        if found is None:
            raise InvalidInput(
                f"no bundle {tenant}/{bundle[:_DIGEST_CHARS]} ever came into force by a decision of this log",
                code="no-such-attestation",
            )
        return self.of_entry(tenant, found)

    def of_entry(self, tenant: str, leaf_index: int) -> dict[str, Any]:
        """The statement of an entry of the log, made now if there is none yet.

        Args:
            tenant: Whose log.
            leaf_index: Which entry.

        Raises:
            InvalidInput: There is no such entry, or it is of a kind that is not attested by itself.
        """
        proved = self._proved(tenant, leaf_index)
        digest_hex = self._made(tenant, proved) or self._make(tenant, proved)
        found = self.read(tenant, digest_hex)
        if found is None:
            raise Unavailable(
                f"attestation {digest_hex[:16]} of {tenant} was logged and is not stored: run licet log fsck"
            )
        return found

    def _make(self, tenant: str, proved: dict[str, Any]) -> str:
        proof = TlogProof.from_text(proved["proof"])
        envelope = self._signer.attest_entry(
            tenant=tenant,
            leaf=proved["leaf"],
            leaf_index=proof.index,
            salt=bytes.fromhex(proved["salt"]),
            record=proved["record"],
            proof=proof.path,
            checkpoint=proof.note,
        )
        return log_attestation(self._sequencer, tenant, envelope)

    def _made(self, tenant: str, proved: dict[str, Any]) -> str | None:
        """The statement of an entry that was made before; a leaf is like no other, for its commitment is salted."""
        kind, record = Leaf.from_bytes(proved["leaf"].encode()).kind, json.loads(proved["record"])
        named = {
            "decision": (DECISION, f"decision/{record.get('id')}"),
            "policy": (POLICY, "policy-bundle"),
            "traffic": (TRAFFIC, record.get("endpoint")),
        }.get(kind)
        if named is None:
            raise InvalidInput(
                f"entry {proved['leaf_index']} is of kind {kind!r}, which is not attested by itself",
                code="not-attested",
            )
        # It was logged after the entry that it is about.
        query = select(_ROWS).where(
            _ROWS.c.tenant_id == tenant,
            _ROWS.c.predicate_type == named[0],
            _ROWS.c.subject == named[1],
            _ROWS.c.leaf_index > proved["leaf_index"],
        )
        with read_transaction(self._engine, tenant) as connection:
            # Soon after it, as a rule: so few are looked at.
            rows = (
                connection.execution_options(yield_per=_AT_ONCE).execute(query.order_by(_ROWS.c.leaf_index)).mappings()
            )
            made = (row for row in rows if _statement(row["envelope"])["predicate"]["leaf"] == proved["leaf"])
            return next((str(row["digest_hex"]) for row in made), None)

    def _proved(self, tenant: str, leaf_index: int, head: tuple[int, str] | None = None) -> dict[str, Any]:
        """An entry with its record and the proof that it is in the log, under a checkpoint that is given or fetched."""
        size, note = head or self._witnesses.for_evidence(tenant, _WAIT_FOR_WITNESSES_S)
        if not 0 <= leaf_index < size:
            raise InvalidInput(f"the log of {tenant} has no entry {leaf_index}", code="not-attested")
        with read_transaction(self._engine, tenant) as connection:
            entry = store.read_entry(connection, tenant, leaf_index)
            path = store.inclusion_proof(connection, tenant, leaf_index, size)
        if entry.record is None or entry.salt is None:
            raise Erased(
                f"the record of entry {leaf_index} of the log of {tenant} was erased: nothing can be made of it"
            )
        return {
            "leaf_index": leaf_index,
            "leaf": entry.header,
            "salt": entry.salt.hex(),
            "record": bytes(entry.record).decode(),
            "proof": TlogProof(leaf_index, tuple(path), note).to_text(),
        }


def _newest_first(connection: Connection, query: Select[Any]) -> Iterator[dict[str, Any]]:
    """The rows of a query, page by page, the newest first.

    Raises:
        InvalidInput: There are more than are looked through for one request.
    """
    before: int | None = None
    for _ in range(_MAX_PAGES):
        page = query if before is None else query.where(_ROWS.c.leaf_index < before)
        rows = connection.execute(page.order_by(_ROWS.c.leaf_index.desc()).limit(MAX_ROWS)).mappings().all()
        yield from (dict(row) for row in rows)
        if len(rows) < MAX_ROWS:
            return
        before = rows[-1]["leaf_index"]
    raise InvalidInput(
        f"it is not among the newest {_MAX_PAGES * MAX_ROWS} of them: name a kind, or export the evidence of its time"
    )


def _told(row: dict[str, Any]) -> dict[str, Any]:
    statement = _statement(row["envelope"])
    return {
        "digest_hex": row["digest_hex"],
        "predicate_type": row["predicate_type"],
        "kind": next((name for name, type_ in NAMES.items() if type_ == row["predicate_type"]), "other"),
        "about": _about(statement),
        "leaf_index": row["leaf_index"],
        "at_ms": row["at_ms"],
    }


def _statement(envelope: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
    return found


def _about(statement: dict[str, Any]) -> list[str]:
    """What a statement is about, in the words by which people ask: its subjects, and what its predicate names first."""
    predicate = statement["predicate"]
    named = [subject["name"] for subject in statement["subject"]]
    build = predicate.get("buildDefinition", {}).get("externalParameters", {})
    properties = predicate.get("metadata", {}).get("properties", []) if "bomFormat" in predicate else []
    also = [
        *(predicate.get(name) for name in ("version", "endpoint", "dataset", "track", "actor")),
        predicate.get("resourceUri", "").removeprefix("licet:"),
        build.get("run"),
        *(one["value"] for one in properties if one["name"] == "licet:version"),
    ]
    return [*named, *(text for text in also if isinstance(text, str) and text)]


def _activation(connection: Connection, tenant: str, leaf_index: int, bundle: str) -> int | None:
    """Where the entry of an activation stands that this decision allowed, if it is of that bundle."""
    for entry in store.read_entries(connection, tenant, leaf_index + 1, _AFTER_DECISION):
        record = json.loads(entry.record) if entry.record is not None and entry.leaf.kind == "policy" else {}
        if record.get("event") in EVENTS and record.get("bundle", "").startswith(bundle):
            return entry.index
    return None
