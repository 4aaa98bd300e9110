"""Steps 6 to 10 of the verifier, and what the isolation answer is counted from: what each entry must pass, in order.

Rules kept here:

- A step sees an entry once the steps before it have passed it. What a step knows beyond the chunk at hand is bounded.
- A step begins with each chunk, takes its entries in order, and ends with it; at last it finishes, and tells its figures.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from licet_attestations import archive, canonical, dsse, erasure, isolation, statement
from licet_attestations.attested import purpose_of
from licet_attestations.entries import Chunk, Entries, Entry, read_envelopes
from licet_attestations.errors import FormatError, VerificationError, WarrantError
from licet_attestations.isolation_pair import examined_policies
from licet_attestations.leaf import Leaf, verify_commitment
from licet_attestations.statement import Statement
from licet_attestations.warrant import (
    MAX_CLOCK_SKEW_MS,
    MAX_DECISION_AGE_MS,
    OPERATIONS_OF,
    Warrant,
    verify_logged,
    verify_touched,
)
from licet_attestations.window import moment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from licet_attestations.trustroot import TrustRoot
    from licet_attestations.window import Outside, Window

MAX_BUNDLE_BYTES = 16 * 1024 * 1024
_FACTS_PER_DECISION = 10_000


class Pass:
    """What the steps share while they go over the entries.

    Args:
        files: The archive.
        window: Which entries.
        outside: Entries of outside it, verified.
        trust: Pinned keys.

    Attributes:
        chunk: At hand.
        missing: Records that are not there, of the window or of decisions that its warrants stand on, and that no entry named as erased yet.
        where: The file and entry at hand, for what fails.
        counts: Entries by kind, and other figures.
        decided_by: SHA-256 of the policies that decisions were made under.
        examined: By SHA-256 of policies, the newest attestation of whether they allow nothing across tenants: its entry, and its SHA-256 if
            that was proved, or no text.
    """

    def __init__(self, files: archive.Files, window: Window, outside: Mapping[int, Outside], trust: TrustRoot) -> None:
        self.files = files
        self.window = window
        self.outside = outside
        self.missing = erasure.Missing()
        self.trust = trust
        self.entries = Entries(files, window)
        self.chunk = Chunk(files, window.first, window.first)
        self.where = ""
        self.counts: dict[str, int] = {}
        self.decided_by: set[str] = set()
        self.examined: dict[str, tuple[int, str]] = {}

    def entry_at(self, index: int) -> tuple[Leaf, bytes | None, Mapping[str, Any] | None]:
        """An entry with its record, of the window or of outside it.

        Raises:
            IndexError: It is neither.
            VerificationError: Its record is not its own.
        """
        if (outside := self.outside.get(index)) is not None:
            data = outside.record
            return outside.leaf, data, None if data is None else canonical.loads(data)
        entry = self.entries[index]
        if entry.salt is not None and entry.data is not None:
            verify_commitment(entry.leaf, entry.salt, entry.data)  # It may come later than what asks for it.
        return entry.leaf, entry.data, entry.record


class EntryStep(ABC):
    """A step.

    Args:
        over: What the steps share.

    Attributes:
        detail: Figures, once it is finished.
        limits: What it could not verify.
    """

    name: str

    def __init__(self, over: Pass) -> None:
        self._over = over
        self.detail = ""
        self.limits: list[str] = []

    def begin(self) -> None:  # noqa: B027  # Most have nothing to do then.
        """A chunk begins."""

    @abstractmethod
    def take(self, entry: Entry) -> None:
        """Verify an entry."""

    def end(self) -> None:  # noqa: B027  # As above.
        """The chunk ends."""

    def finish(self) -> None:  # noqa: B027  # As above.
        """There are no more entries."""


class Records(EntryStep):
    """Step 6: every record is what its leaf commits to; of one that is missing, an entry behind it says that it was erased."""

    name = "records"

    def __init__(self, over: Pass) -> None:
        super().__init__(over)
        self._erased = 0

    def begin(self) -> None:
        """See that there is a line for each entry, before any of them is looked up."""
        self._over.where = self._over.chunk.name(archive.RECORDS)
        for _ in self._over.chunk.lines():
            pass

    def take(self, entry: Entry) -> None:
        """Verify the commitment."""
        if entry.salt is None or entry.data is None:
            self._erased += 1
            self._over.missing.add(entry.index, entry.leaf)
        else:
            verify_commitment(entry.leaf, entry.salt, entry.data)
            if entry.leaf.kind == erasure.KIND and entry.record is not None:
                self._take_erasure(entry.index, entry.record)
        counts = self._over.counts
        counts[entry.leaf.kind] = counts.get(entry.leaf.kind, 0) + 1

    def _take_erasure(self, index: int, record: Mapping[str, Any]) -> None:
        if not self._over.missing.take(index, record):
            return
        try:
            leaf, _, before = self._over.entry_at(index - 1)
        except IndexError:
            raise VerificationError(
                f"the decision that allowed the erasure of entry {index}, right before it, is not in the archive"
            ) from None
        erasure.verify_decided(index, record, leaf.kind, before)

    def finish(self) -> None:
        """Tell how many there are."""
        window, missing, behind = self._over.window, self._over.missing, 0
        for outside in self._over.outside.values():
            if outside.leaf.kind == erasure.KIND and outside.record is not None:
                self._over.where = f"{archive.OUTSIDE}, entry {outside.index}"
                self._take_erasure(outside.index, outside.read())
                behind += 1
        if (first := missing.first) is not None:
            inside = window.first <= first < window.end
            name = archive.chunk_with(archive.RECORDS, first, window.first) if inside else archive.OUTSIDE
            self._over.where = f"{name}, entry {first}"
            raise VerificationError(
                f"the record of entry {first} is missing, and no entry of the log, up to the checkpoint, says that it was erased"
            )
        self._over.counts["erased"] = self._erased
        if self._erased:
            self.limits.append(
                f"{self._erased} records are erased: that and when they were made, by whose principal and on whose things is "
                "proven, what they said is not. Entries of kind erasure say by whom and why each was erased."
            )
        if behind:
            self.limits.append(
                f"{behind} erasures stand behind the archive's time: the decisions that allowed them are shown, and not evaluated here; "
                "an archive of their time has what that takes."
            )
        self.detail = f"{window.end - window.first - self._erased} records, {self._erased} erased"


class Headers(EntryStep):
    """Step 7: time never runs backwards, and headers agree with records.

    Attributes:
        last_ms: Time of the last entry.
    """

    name = "headers"

    def __init__(self, over: Pass) -> None:
        super().__init__(over)
        before = over.outside.get(over.window.first - 1)
        self.last_ms = 0 if before is None else before.leaf.time_ms
        self._is_empty = True

    def take(self, entry: Entry) -> None:
        """Compare an entry with the one before, and with its own record."""
        leaf, tenant = entry.leaf, self._over.window.tenant
        if leaf.time_ms < self.last_ms:
            raise VerificationError(f"entry {entry.index} is {self.last_ms - leaf.time_ms} ms before the one before it")
        self.last_ms = leaf.time_ms
        self._is_empty = False
        self._over.window.verify_time(entry.index, leaf.time_ms)
        # What a tenant's log holds was done by the tenant's own, or to what is the tenant's.
        if tenant not in (leaf.actor, leaf.owner):
            raise VerificationError(f"entry {entry.index} of the log of {tenant!r} is between others")
        if entry.record is not None:
            _check_header(leaf, entry.record, tenant)

    def finish(self) -> None:
        """See that what comes next is not earlier."""
        for outside in self._over.outside.values():
            if outside.record is not None:
                self._over.where = f"{archive.OUTSIDE}, entry {outside.index}"
                _check_header(outside.leaf, outside.read(), self._over.window.tenant)
        after = self._over.outside.get(self._over.window.end)
        if after is not None and after.leaf.time_ms < self.last_ms:
            raise VerificationError(f"entry {after.index} is before the last one of the archive", where=archive.OUTSIDE)
        self.detail = "no entries" if self._is_empty else f"last entry at {moment(self.last_ms)}"


class Decisions(EntryStep):
    """Step 8: what a decision was made on is there, and nothing else is."""

    name = "decisions"

    def __init__(self, over: Pass) -> None:
        super().__init__(over)
        self._bundles = over.decided_by
        self._named: set[str] = set()
        self._facts = 0
        self._outcomes = {"allow": 0, "deny": 0}

    def begin(self) -> None:
        """Read the facts of the chunk."""
        self._over.where = self._over.chunk.name(archive.FACTS)
        self._named = set()
        for data in self._over.chunk.facts.values():
            canonical.loads(data, canonical=True)

    def take(self, entry: Entry) -> None:
        """See that what a decision names is there."""
        if entry.leaf.kind != "decision" or entry.record is None:
            return
        self._outcomes[entry.record["decision"]] += 1
        facts, bundle = entry.record.get("facts"), entry.record.get("bundle")
        if not isinstance(facts, list) or len(facts) > _FACTS_PER_DECISION:
            raise FormatError("a decision lists the facts it was made on")
        if not all(isinstance(name, str) for name in facts) or not isinstance(bundle, str):
            raise FormatError("a decision names facts and bundle by SHA-256")
        there = self._over.chunk.facts
        for name in facts:
            if name not in there:
                raise VerificationError(
                    f"decision {entry.index} names fact {name:.64}, which is not there",
                    where=self._over.chunk.name(archive.FACTS),
                )
        self._named.update(facts)
        if bundle not in self._bundles:
            self._read_bundle(bundle, entry.index)

    def _read_bundle(self, digest_hex: str, index: int) -> None:
        name = archive.bundle_name(digest_hex[:64])
        if name not in self._over.files:
            raise VerificationError(f"decision {index} names policies that are not there", where=name)
        data = self._over.files.read(name, MAX_BUNDLE_BYTES)
        if hashlib.sha256(data).hexdigest() != digest_hex:
            raise VerificationError("the file is not what its name is the SHA-256 of", where=name)
        self._over.where = name
        canonical.loads(data, canonical=True)
        self._bundles.add(digest_hex)

    def end(self) -> None:
        """See that nothing is there that no decision names."""
        name = self._over.chunk.name(archive.FACTS)
        if name in self._over.files:
            for digest_hex in self._over.chunk.facts.keys() - self._named:
                raise VerificationError(f"no decision of its chunk names fact {digest_hex}", where=name)
            if not self._named:
                raise VerificationError("a chunk is empty", where=name)
        self._facts += len(self._named)

    def finish(self) -> None:
        """The same of the policies."""
        named = {archive.bundle_name(digest_hex) for digest_hex in self._bundles}
        for name in self._over.files.names(f"{archive.BUNDLES}/"):
            if name not in named:
                raise VerificationError("no decision of the archive names these policies", where=name)
        self._over.counts |= self._outcomes
        outcomes = f"{self._outcomes['allow']} allowed, {self._outcomes['deny']} denied"
        self.detail = f"{outcomes}, on {self._facts} facts and {len(self._bundles)} bundles"


class Signatures(EntryStep):
    """Step 9: pinned keys signed every attestation, and the log names each.

    Attributes:
        claim: The attestation of the entry at hand; None where it is of another kind, or erased.
    """

    name = "signatures"

    def __init__(self, over: Pass) -> None:
        super().__init__(over)
        self.claim: Statement | None = None
        self._named: set[str] = set()
        self._count = 0

    def begin(self) -> None:
        """Read the attestations of the chunk."""
        self._over.where = self._over.chunk.name(archive.ATTESTATIONS)
        self._named = set()
        _ = self._over.chunk.attestations

    def take(self, entry: Entry) -> None:
        """Verify the attestation that an entry names."""
        self.claim = None
        if entry.leaf.kind == "attestation" and entry.record is not None:
            name, there = self._over.chunk.name(archive.ATTESTATIONS), self._over.chunk.attestations
            digest_hex, self.claim = self._verify(entry.index, entry.leaf, entry.record, there, name)
            if digest_hex not in self._named:
                self._named.add(digest_hex)
                self._count += 1

    def _verify(  # One entry, and where what it names is.
        self, index: int, leaf: Leaf, record: Mapping[str, Any], there: Mapping[str, bytes], name: str
    ) -> tuple[str, Statement]:
        digest_hex, predicate_type = record.get("digest"), record.get("predicate_type")
        if not isinstance(digest_hex, str) or not isinstance(predicate_type, str):
            raise FormatError("an attestation's entry names its digest and predicate type")
        data = there.get(digest_hex)
        if data is None:
            raise VerificationError(f"entry {index} names attestation {digest_hex:.64}, which is not there", where=name)
        self._over.where = f"{name}, entry {index}"
        envelope = dsse.Envelope.from_json(data)
        claim = Statement.from_bytes(envelope.payload)
        purpose = purpose_of(claim.predicate_type)
        trust = self._over.trust
        trust.verify_envelope(envelope, purpose, trust.keys(purpose, leaf.time_ms))
        if claim.predicate_type != predicate_type:
            raise VerificationError(f"the log has this as {predicate_type!r}, it is {claim.predicate_type!r}")
        if statement.tenant_of(claim.predicate) not in (None, self._over.window.tenant):
            raise VerificationError("the attestation says that it is another tenant's")
        for bundle_hex, holds in examined_policies(claim).items():
            # Those of outside come last, whichever side of the window they stand on.
            if index > self._over.examined.get(bundle_hex, (-1, ""))[0]:
                self._over.examined[bundle_hex] = (index, digest_hex if holds else "")
        return digest_hex, claim

    def end(self) -> None:
        """See that none is there that no entry names."""
        name = self._over.chunk.name(archive.ATTESTATIONS)
        for digest_hex in self._over.chunk.attestations.keys() - self._named:
            raise VerificationError(f"no entry of its chunk names attestation {digest_hex}", where=name)
        if name in self._over.files and not self._named:
            raise VerificationError("a chunk is empty", where=name)

    def finish(self) -> None:
        """Verify those that entries of outside name, and tell how many there are."""
        name = archive.OUTSIDE_ATTESTATIONS
        self._over.where = name
        there = read_envelopes(self._over.files, name)
        named = set()
        for outside in self._over.outside.values():
            if outside.leaf.kind == "attestation" and outside.record is not None:
                digest_hex, _ = self._verify(outside.index, outside.leaf, outside.read(), there, name)
                named.add(digest_hex)
        for digest_hex in there.keys() - named:
            raise VerificationError(f"no entry of outside names attestation {digest_hex}", where=name)
        if name in self._over.files and not named:
            raise VerificationError("the file is empty", where=name)
        self._over.counts["attestations"] = self._count
        self.detail = f"{self._count} attestations"


class Warrants(EntryStep):
    """Step 10: every warrant leads back to a decision in the log that allowed its action."""

    name = "warrants"

    def __init__(self, over: Pass, signatures: Signatures) -> None:
        super().__init__(over)
        self._signatures = signatures
        self._count = 0
        self._erased = 0

    def take(self, entry: Entry) -> None:
        """Verify the warrant of an entry, if it has one."""
        claim = self._signatures.claim
        if claim is None or claim.predicate_type != statement.WARRANT:
            return
        self._over.where = f"{self._over.chunk.name(archive.ATTESTATIONS)}, entry {entry.index}"
        self._count += 1
        try:
            self._verify(Warrant.from_statement(claim))
        except WarrantError as error:
            raise VerificationError(str(error)) from error  # It names no file.

    def _verify(self, warrant: Warrant) -> None:
        if warrant.tenant != self._over.window.tenant:
            raise VerificationError(f"the warrant is of tenant {warrant.tenant!r}")
        if warrant.operation not in OPERATIONS_OF.get(warrant.action, frozenset()):
            raise VerificationError(f"{warrant.action!r} may not lead to {warrant.operation!r}")
        # The leaf is compared with the archive's own below, whoever signed the proof that came with the warrant.
        decided = verify_logged(warrant, self._over.trust, self._over.trust.every_key("log"))
        age_ms = warrant.issued_at_ms - decided.time_ms
        if not -MAX_CLOCK_SKEW_MS <= age_ms <= MAX_DECISION_AGE_MS + MAX_CLOCK_SKEW_MS:
            raise VerificationError(f"the warrant was issued {age_ms} ms after its decision")
        index = warrant.decision.leaf_index
        try:
            leaf, data, record = self._over.entry_at(index)
        except IndexError:
            raise VerificationError(f"the warrant's decision, entry {index}, is not in the archive") from None
        if leaf != decided:
            raise VerificationError(f"the warrant's decision is not entry {warrant.decision.leaf_index} of this log")
        if data is None or record is None:
            self._erased += 1
            if index in self._over.outside:
                self._over.missing.add(index, leaf)
        else:
            _check_warrant(warrant, data, record)

    def finish(self) -> None:
        """Tell how many there are."""
        self._over.counts["warrants"] = self._count
        if self._erased:
            self.limits.append(
                f"{self._erased} warrants stand on decisions whose records are erased: logged, but not seen here."
            )
        self.detail = f"{self._count} warrants"


class Isolated(EntryStep):
    """What the isolation answer is counted from."""

    name = "isolation"

    def __init__(self, over: Pass) -> None:
        super().__init__(over)
        self._count = isolation.IsolationCount(over.window.tenant)

    def take(self, entry: Entry) -> None:
        """Count an entry."""
        self._count.take(entry.leaf, entry.record)

    def answer(self) -> isolation.Isolation:
        """The answer."""
        return self._count.answer()


def _check_header(leaf: Leaf, record: Mapping[str, Any], tenant: str) -> None:
    """Check that a header says of its record what the record says itself."""
    if record.get("type", leaf.kind) != leaf.kind:
        raise VerificationError(f"the header says {leaf.kind!r}, the record {record['type']!r}")
    if record.get("tenant", tenant) != tenant:
        raise VerificationError(f"the record is of tenant {record['tenant']!r}")
    decision = record.get("decision")
    if leaf.kind in isolation.DECISION_KINDS:
        if decision not in ("allow", "deny") or "principal" not in record:
            raise VerificationError("the record tells no principal and no outcome")
    elif decision in ("allow", "deny"):
        raise VerificationError(f"the header says {leaf.kind!r}, the record is a decision")
    if leaf.kind == "decision" and (record.get("tenant"), leaf.actor) != (tenant, tenant):
        # One who is not of this tenant is decided on in their own log; here, that they tried stands as an attempt.
        raise VerificationError("the record is not a decision about one of this tenant's own")
    if "principal" in record and isolation.tenant_of(record["principal"]) != leaf.actor:
        raise VerificationError(f"the header's actor is {leaf.actor!r}, the record's principal is of another tenant")
    time_ms = record.get("time_ms", 0)
    if type(time_ms) is not int or time_ms > leaf.time_ms:
        raise VerificationError("the record is from after its entry in the log")


def _check_warrant(warrant: Warrant, data: bytes, record: Mapping[str, Any]) -> None:
    """Check that a decision allowed what a warrant permits."""
    if record.get("decision") != "allow":
        raise VerificationError("the warrant's decision was a deny")
    if hashlib.sha256(data).hexdigest() != warrant.decision.record_digest:
        raise VerificationError("the warrant's decision has another record")
    if (record.get("id"), record.get("action")) != (warrant.decision.id, warrant.action):
        raise VerificationError("the warrant's decision has another id or is about another action")
    match record:
        case {
            "principal": {"type": str(kind), "id": str(identifier)},
            "operation": {
                "id": warrant.operation_id,
                "parameters_digest": warrant.parameters_digest_hex,
                "resources": list(decided),
            },
        } if f"{kind}::{identifier}" == warrant.principal:
            verify_touched(
                warrant.resources,
                tenant=warrant.tenant,
                operation=warrant.operation,
                operation_id=warrant.operation_id,
                decided=decided,
            )
            return
    raise VerificationError("the warrant is for another principal, operation or parameters than were decided on")
