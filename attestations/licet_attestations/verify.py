"""The offline verifier of evidence archives.

The steps, in order; the first that fails ends it, and every failure names its step and the file:

 1. form        The archive is a zip file of the one allowed form, with the layout's files only, within bounds.
 2. manifest    Every file has the size and SHA-256 that the manifest gives it; none is missing and none is extra.
 3. checkpoint  The log is the tenant's under the pinned trust root, and a pinned log key signed its checkpoint; with a policy of the
                caller's, its quorum of witnesses cosigned it.
 4. leaves      The leaves, from the first entry or from a frontier, rebuild the root of the checkpoint.
 5. records     Every record is what its leaf commits to; none is missing unless it is named as erased.
 6. headers     Time never runs backwards, the log key was valid at the last entry's time, and every header agrees with its
                record in kind, actor, owner and time.
 7. decisions   Every fact and bundle that a decision names is there, under its digest.
 8. signatures  Every attestation bears the signature of a pinned key for its purpose, valid when it was logged; the log has an entry
                for every one, and every one the log has an entry for is there.
 9. warrants    Every warrant leads back to a decision in the log that allowed its action.
10. export      A pinned attestation key signed the statement that names the manifest, the tenant and the range.
11. isolation   The isolation answer, computed anew; a signed one in the archive must say the same.
12. replay      If asked for: every decision, evaluated again from its record, comes out the same.

Rules kept here:

- The trust root is the caller's. Nothing in an archive adds to it.
- Nothing is believed before the step that verifies it; every parse is strict and bounded.
- What was not or cannot be verified is said in the report (``limits``), in words.
- ``VerificationError`` is all that is raised for a bad archive; ``OSError`` where it cannot be read.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from licet_attestations import archive, canonical, checkpoint, dsse, isolation, merkle, statement, tlogpolicy
from licet_attestations.errors import FormatError, LicetAttestationError, VerificationError
from licet_attestations.leaf import MAX_LEAF_BYTES, Leaf, is_tenant, verify_commitment
from licet_attestations.warrant import (
    MAX_CLOCK_SKEW_MS,
    MAX_DECISION_AGE_MS,
    OPERATIONS_OF,
    Warrant,
    verify_logged,
    verify_touched,
)

if TYPE_CHECKING:
    from pathlib import Path

    from licet_attestations.tlogpolicy import Policy
    from licet_attestations.trustroot import Purpose, TrustRoot

Replay = Callable[[Mapping[str, Any], list[Mapping[str, Any]], Mapping[str, Any]], object]
"""``replay(record, facts, bundle)`` evaluates a decision again from its record; it raises if the outcome is another."""

STEPS: tuple[tuple[str, str], ...] = (
    ("form", "the archive has the one allowed form"),
    ("manifest", "every file is the one in the manifest, and none is extra"),
    ("checkpoint", "a pinned log key signed the checkpoint of this tenant's log"),
    ("leaves", "the leaves rebuild the checkpoint's root"),
    ("records", "every record is what its leaf commits to"),
    ("headers", "time never runs backwards, and headers agree with records"),
    ("decisions", "every fact and bundle that a decision names is there"),
    ("signatures", "pinned keys signed every attestation, and the log names each"),
    ("warrants", "every warrant leads back to a decision that allowed it"),
    ("export", "a pinned key signed the manifest and the range"),
    ("isolation", "the isolation answer is computed anew"),
    ("replay", "every decision comes out the same when evaluated again"),
)

MAX_JSON_BYTES = 16 * 1024 * 1024
MAX_MANIFEST_BYTES = 512 * 1024 * 1024
_RECORD_NAME = "records/{}.json"
_FACTS_PER_DECISION = 10_000


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step that was passed.

    Attributes:
        number: From 1.
        name: Short name.
        title: What is now known.
        detail: Figures.
    """

    number: int
    name: str
    title: str
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a verified archive shows, and what it does not.

    Attributes:
        tenant: Whose log.
        origin: The log's origin.
        first: First entry.
        size: Size of the log at the checkpoint.
        root_hex: Root of the tree at the checkpoint.
        steps: What was verified.
        counts: Entries by kind, and ``erased``, ``allow``, ``deny``, ``attestations``, ``warrants``, ``replayed``.
        isolation: The isolation answer.
        limits: What was not or cannot be verified.
    """

    tenant: str
    origin: str
    first: int
    size: int
    root_hex: str
    steps: tuple[StepResult, ...]
    counts: Mapping[str, int]
    isolation: isolation.Isolation
    limits: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {
            "verified": True,
            "tenant": self.tenant,
            "origin": self.origin,
            "first": self.first,
            "size": self.size,
            "root": self.root_hex,
            "steps": [{"step": s.number, "name": s.name, "title": s.title, "detail": s.detail} for s in self.steps],
            "counts": dict(self.counts),
            "isolation": self.isolation.to_predicate(),
            "limits": list(self.limits),
        }


@dataclass
class _State:
    """What the steps so far have established; each field is set by the step named behind it."""

    manifest_digest_hex: str = ""  # 2
    manifest_tenant: object = None  # 2
    tenant: str = ""  # 3
    origin: str = ""  # 3
    note: str = ""  # 3
    first: int = 0  # 3
    frontier: merkle.Frontier = field(default_factory=merkle.Frontier)  # 3
    erased: frozenset[int] = frozenset()  # 3
    head: checkpoint.Checkpoint = field(default_factory=lambda: checkpoint.Checkpoint("", 0, merkle.EMPTY_ROOT))  # 3
    leaves: list[Leaf] = field(default_factory=list)  # 4
    counts: dict[str, int] = field(default_factory=dict)  # 4 and after
    warrants: list[tuple[str, Warrant]] = field(default_factory=list)  # 8
    isolation: isolation.Isolation = field(default_factory=lambda: isolation.Isolation(""))  # 11
    limits: list[str] = field(default_factory=list)  # any


def verify_archive(
    path: Path,
    trust: TrustRoot,
    *,
    expected_tenant: str | None = None,
    replay: Replay | None = None,
    policy: Policy | None = None,
) -> Report:
    """Verify an evidence archive against a pinned trust root, and return what it shows.

    Args:
        path: The archive; nothing in it is trusted.
        trust: The keys that the caller pins.
        expected_tenant: Whose archive it must be; anyone's if not given.
        replay: Evaluates a decision again; without it, step 12 is left out and the report says so.
        policy: Whose quorum of witnesses must have cosigned the checkpoint; without it nobody need have, and the report says so.

    Raises:
        VerificationError: The archive does not prove what it claims; ``step`` and ``where`` tell which and where.
        OSError: The archive cannot be read.
    """
    verification = _Verification(path, trust, expected_tenant, replay, policy)
    try:
        return verification.run()
    finally:
        verification.close()


class _Verification:
    def __init__(  # What verify_archive was given, as it was.
        self,
        path: Path,
        trust: TrustRoot,
        expected_tenant: str | None,
        replay: Replay | None,
        policy: Policy | None,
    ) -> None:
        self._policy = policy
        self._path = path
        self._trust = trust
        self._expected_tenant = expected_tenant
        self._replay = replay
        self._archive: archive.Archive
        self._state = _State()
        self._file = ""  # The file at hand, for failures that do not name their own.
        self._parse = lru_cache(maxsize=4096)(self._parse_named)

    def close(self) -> None:
        if hasattr(self, "_archive"):
            self._archive.__exit__(None, None, None)

    def run(self) -> Report:
        steps = (
            self._form,
            self._manifest,
            self._checkpoint,
            self._leaves,
            self._records,
            self._headers,
            self._decisions,
            self._signatures,
            self._warrants,
            self._export,
            self._isolation,
            self._replays,
        )
        results = []
        for number, (step, (name, title)) in enumerate(zip(steps, STEPS, strict=True), start=1):
            if step == self._replays and self._replay is None:
                self._state.limits.append("Decisions were not evaluated again; use --replay to do so.")
                continue
            self._file = ""
            try:
                detail = step()
            except LicetAttestationError as error:
                # The form is found at fault by the reader of archives, which names the file itself.
                where = self._file or getattr(error, "where", None) or self._path.name
                raise VerificationError(str(error), step=f"{number}. {name}", where=where) from error
            results.append(StepResult(number, name, title, detail))
        state = self._state
        if self._policy is None:
            state.limits.append("Nobody was asked who else saw this log: without --tlog-policy no witness need have.")
        return Report(
            tenant=state.tenant,
            origin=state.origin,
            first=state.first,
            size=state.head.size,
            root_hex=state.head.root.hex(),
            steps=tuple(results),
            counts=state.counts,
            isolation=state.isolation,
            limits=(*state.limits, *isolation.LIMITS),
        )

    def _fault(self, name: str, message: str) -> VerificationError:
        """A failure in file ``name``, which may not be the file at hand."""
        self._file = name
        return VerificationError(message)

    # Step 1.
    def _form(self) -> str:
        self._archive = archive.Archive(self._path)
        return f"{len(self._archive.members)} files, {self._archive.size} bytes"

    # Step 2.
    def _manifest(self) -> str:
        state = self._state
        state.manifest_digest_hex = self._hash(archive.MANIFEST)
        manifest = self._json(archive.MANIFEST, MAX_MANIFEST_BYTES)
        if not isinstance(manifest, dict) or set(manifest) != {"v", "tenant", "files"} or manifest["v"] != 1:
            raise FormatError("not a manifest of version 1")
        listed = manifest["files"]
        if not isinstance(listed, dict):
            raise FormatError("a manifest lists files by name")
        for name in sorted(set(self._archive.members) ^ (set(listed) | archive.UNLISTED)):
            what = "is in the manifest and not in the archive" if name in listed else "is not in the manifest"
            raise self._fault(name, f"a file {what}")
        for name, member in self._archive.members.items():
            entry = {"sha256": self._hash(name), "size": member.size}
            if name not in archive.UNLISTED and listed[name] != entry:
                raise VerificationError("the file is not the one in the manifest: its content was changed")
        state.manifest_tenant = manifest["tenant"]
        return f"{len(listed)} files"

    def _hash(self, name: str) -> str:
        """SHA-256 of a file, whose checksum in the directory is checked on the way."""
        self._file = name
        digest, crc = hashlib.sha256(), 0
        for chunk in self._archive.chunks(name):
            digest.update(chunk)
            crc = zlib.crc32(chunk, crc)
        if crc != self._archive.members[name].crc:
            raise VerificationError(
                "the file's content was changed: it has not the checksum in the archive's directory"
            )
        return digest.hexdigest()

    # Step 3.
    def _checkpoint(self) -> str:
        state = self._state
        self._read_range()
        # 3a. The origin follows from the pinned trust root and the tenant, not from the archive.
        if state.origin != self._trust.origin(state.tenant):
            raise VerificationError(
                f"log {state.origin!r} is not the one of {state.tenant!r} under the pinned trust root"
            )
        if self._expected_tenant not in (None, state.tenant):
            raise VerificationError(f"the archive is of tenant {state.tenant!r}, not of {self._expected_tenant!r}")
        # 3b. A pinned log key signed.
        self._file = archive.CHECKPOINT
        try:
            state.note = self._archive.read(archive.CHECKPOINT, checkpoint.MAX_NOTE_BYTES).decode()
        except UnicodeDecodeError as error:
            raise FormatError("the checkpoint is not UTF-8") from error
        keys = tlogpolicy.log_keys(state.note, self._policy, self._trust)
        state.head = checkpoint.verify_checkpoint(state.note, state.origin, keys)
        told = f"{state.origin}, {state.head.size} entries"
        # 3c. The quorum of the caller's own policy cosigned; what a policy comes with the archive counts for nothing.
        if self._policy is None:
            return told
        found = tlogpolicy.verify(state.note, self._policy, state.origin, keys)
        seen = ", ".join(sorted(found.cosignatures)) or "nobody"
        return f"{told}, cosigned by {seen}"

    def _read_range(self) -> None:
        state = self._state
        self._file = archive.RANGE
        value = self._json(archive.RANGE)
        fields = {"v", "tenant", "origin", "first", "size", "frontier_first", "erased"}
        if not isinstance(value, dict) or set(value) != fields or value["v"] != 1:
            raise FormatError("not a range of version 1")
        tenant, origin, first, erased = value["tenant"], value["origin"], value["first"], value["erased"]
        if not is_tenant(tenant) or not isinstance(origin, str) or tenant != state.manifest_tenant:
            raise FormatError("the range names no tenant and origin, or not the manifest's tenant")
        if type(first) is not int or first < 0 or type(value["size"]) is not int or value["size"] < first:
            raise FormatError("the range does not go from a first entry to a size")
        frontier = value["frontier_first"]
        if not isinstance(frontier, list) or not all(statement.is_sha256_hex(h) for h in frontier):
            raise FormatError("the range's frontier is a list of SHA-256 in hex")
        if not isinstance(erased, list) or not all(type(i) is int and first <= i < value["size"] for i in erased):
            raise FormatError("the range's erased records are entries of the range")
        state.frontier = merkle.Frontier(first, [bytes.fromhex(h) for h in frontier])
        state.tenant, state.origin, state.first, state.erased = tenant, origin, first, frozenset(erased)

    # Step 4.
    def _leaves(self) -> str:
        state = self._state
        self._file = archive.LEAVES
        tree = state.frontier.copy()
        for number, line in enumerate(self._lines(archive.LEAVES), start=state.first):
            if number >= state.head.size:
                raise VerificationError(f"the archive has more leaves than the log has entries ({state.head.size})")
            self._file = f"{archive.LEAVES}, entry {number}"
            leaf = Leaf.from_bytes(line)
            tree.append(merkle.leaf_hash(line))
            state.leaves.append(leaf)
            state.counts[leaf.kind] = state.counts.get(leaf.kind, 0) + 1
        self._file = archive.LEAVES
        if tree.size != state.head.size:
            raise VerificationError(f"the leaves end at {tree.size}, the log at {state.head.size}")
        if tree.root() != state.head.root:
            raise VerificationError(
                "the leaves do not rebuild the checkpoint's root: one was changed, moved or left out"
            )
        if state.first:
            state.limits.append(
                f"Entries before {state.first} are not in the archive; only their place in the tree is."
            )
        return f"{entries_text(state.first, state.head.size)}, root {state.head.root.hex()[:16]}"

    def _lines(self, name: str) -> Iterator[bytes]:
        rest = b""
        for chunk in self._archive.chunks(name):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
            if len(rest) > MAX_LEAF_BYTES:
                raise FormatError("a leaf is longer than any can be")
        if rest:
            raise FormatError("the last leaf is cut short")

    # Step 5.
    def _records(self) -> str:
        state = self._state
        expected = {_RECORD_NAME.format(i) for i in range(state.first, state.head.size) if i not in state.erased}
        for name in sorted(expected ^ set(self._archive.names("records/"))):
            what = (
                "is missing and not named as erased"
                if name in expected
                else "is of no entry, or of one named as erased"
            )
            raise self._fault(name, f"the record {what}")
        for index, leaf in self._entries():
            if index in state.erased:
                continue
            self._file = _RECORD_NAME.format(index)
            value = self._json(self._file)
            if not isinstance(value, dict) or set(value) != {"salt", "record"} or not isinstance(value["record"], dict):
                raise FormatError("a record's file has exactly a salt and a record")
            if not statement.is_sha256_hex(value["salt"]):
                raise FormatError("a record's salt is 32 bytes in hex")
            verify_commitment(leaf, bytes.fromhex(value["salt"]), canonical.dumps(value["record"]))
        state.counts["erased"] = len(state.erased)
        if state.erased:
            state.limits.append(
                f"{len(state.erased)} records are erased: that and when they were made, by whose principal and on whose things is "
                "proven, what they said is not. That they were erased is the exporter's signed word."
            )
        return f"{state.head.size - state.first - len(state.erased)} records, {len(state.erased)} erased"

    def _entries(self) -> Iterator[tuple[int, Leaf]]:
        return enumerate(self._state.leaves, start=self._state.first)

    def _record(self, index: int) -> Mapping[str, Any] | None:
        """The record of an entry, or None where it is erased. Only after step 5."""
        if index in self._state.erased:
            return None
        self._file = _RECORD_NAME.format(index)
        record: Mapping[str, Any] = canonical.loads(self._archive.read(self._file, MAX_JSON_BYTES))["record"]
        return record

    # Step 6.
    def _headers(self) -> str:
        state = self._state
        before_ms = 0
        for index, leaf in self._entries():
            self._file = f"{archive.LEAVES}, entry {index}"
            if leaf.time_ms < before_ms:
                raise VerificationError(f"entry {index} is {before_ms - leaf.time_ms} ms before the one before it")
            before_ms = leaf.time_ms
            # What a tenant's log holds was done by the tenant's own, or to what is the tenant's.
            if state.tenant not in (leaf.actor, leaf.owner):
                raise VerificationError(f"entry {index} of the log of {state.tenant!r} is between others")
            record = self._record(index)
            if record is not None:
                _check_header(leaf, record, state.tenant)
        self._file = archive.CHECKPOINT
        if state.leaves:
            keys = tlogpolicy.log_keys(state.note, self._policy, self._trust, before_ms)
            checkpoint.verify_checkpoint(state.note, state.origin, keys)
        return f"last entry at {_time_text(before_ms)}" if state.leaves else "no entries"

    # Step 7.
    def _decisions(self) -> str:
        named: set[str] = set()
        outcomes = {"allow": 0, "deny": 0}
        for folder in ("facts/", "bundles/"):
            for name in self._archive.names(folder):
                self._file = name
                if hashlib.sha256(self._archive.read(name, MAX_JSON_BYTES)).hexdigest() not in name:
                    raise VerificationError("the file is not what its name is the SHA-256 of")
                self._json(name)
        for index, leaf in self._entries():
            record = self._record(index) if leaf.kind == "decision" else None
            if record is None:
                continue
            outcomes[record["decision"]] += 1
            for name in _names_of(record):
                if name not in self._archive:
                    raise self._fault(name, f"decision {index} names a file that is not there")
                named.add(name)
        self._state.counts |= outcomes
        return f"{outcomes['allow']} allowed, {outcomes['deny']} denied, on {len(named)} facts and bundles"

    # Step 8.
    def _signatures(self) -> str:
        state = self._state
        logged: dict[str, tuple[int, Leaf, str]] = {}
        for index, leaf in self._entries():
            record = self._record(index) if leaf.kind == "attestation" else None
            if record is None:
                continue
            digest_hex, predicate_type = record.get("digest"), record.get("predicate_type")
            if not statement.is_sha256_hex(digest_hex) or not isinstance(predicate_type, str):
                raise FormatError("an attestation's entry names its digest and predicate type")
            name = f"attestations/{digest_hex}.dsse.json"
            if name not in self._archive:
                raise self._fault(name, f"entry {index} names an attestation that is not there")
            logged.setdefault(name, (index, leaf, predicate_type))
        for name in self._archive.names("attestations/"):
            self._file = name
            if name not in logged:
                raise VerificationError("no entry of the log names this attestation")
            _, leaf, predicate_type = logged[name]
            claim = self._verify_attestation(name, leaf.time_ms)
            if claim.predicate_type != predicate_type:
                raise VerificationError(f"the log has this as {predicate_type!r}, it is {claim.predicate_type!r}")
            if statement.tenant_of(claim.predicate) not in (None, state.tenant):
                raise VerificationError("the attestation says that it is another tenant's")
            if claim.predicate_type == statement.WARRANT:
                state.warrants.append((name, Warrant.from_statement(claim)))
        state.counts["attestations"] = len(logged)
        return f"{len(logged)} attestations"

    def _verify_attestation(self, name: str, at_ms: int) -> statement.Statement:
        envelope = dsse.Envelope.from_json(self._archive.read(name, dsse.MAX_ENVELOPE_BYTES))
        claim = statement.Statement.from_bytes(envelope.payload)
        purpose: Purpose = "warrant" if claim.predicate_type == statement.WARRANT else "attestation"
        payload = dsse.verify_envelope(envelope, self._trust.keys(purpose, at_ms))
        if name.startswith("attestations/") and hashlib.sha256(payload).hexdigest() not in name:
            raise VerificationError("the attestation is not what its name is the SHA-256 of")
        return claim

    # Step 9.
    def _warrants(self) -> str:
        state = self._state
        beyond = erased = 0
        for name, warrant in state.warrants:
            self._file = name
            if warrant.tenant != state.tenant:
                raise VerificationError(f"the warrant is of tenant {warrant.tenant!r}")
            if warrant.operation not in OPERATIONS_OF.get(warrant.action, frozenset()):
                raise VerificationError(f"{warrant.action!r} may not lead to {warrant.operation!r}")
            # Within the range the leaf is compared with the archive's own, whoever signed the proof that came with the warrant.
            is_here = warrant.decision.leaf_index >= state.first
            decided = verify_logged(warrant, self._trust, self._trust.every_key("log") if is_here else None)
            age_ms = warrant.issued_at_ms - decided.time_ms
            if not -MAX_CLOCK_SKEW_MS <= age_ms <= MAX_DECISION_AGE_MS + MAX_CLOCK_SKEW_MS:
                raise VerificationError(f"the warrant was issued {age_ms} ms after its decision")
            index = warrant.decision.leaf_index
            if index < state.first:
                beyond += 1
            elif index >= state.head.size or state.leaves[index - state.first] != decided:
                raise VerificationError(f"the warrant's decision is not entry {index} of this log")
            elif (record := self._record(index)) is None:
                erased += 1
            else:
                self._file = name
                _check_warrant(warrant, record)
        state.counts["warrants"] = len(state.warrants)
        if beyond:
            state.limits.append(
                f"{beyond} warrants stand on decisions before the first entry: logged, but not seen here."
            )
        if erased:
            state.limits.append(
                f"{erased} warrants stand on decisions whose records are erased: logged, but not seen here."
            )
        return f"{len(state.warrants)} warrants"

    # Step 10.
    def _export(self) -> str:
        state = self._state
        self._file = archive.STATEMENT
        envelope = dsse.Envelope.from_json(self._archive.read(archive.STATEMENT, dsse.MAX_ENVELOPE_BYTES))
        claim = statement.Statement.from_bytes(envelope.payload)
        at_ms = claim.predicate.get("exported_at_ms")
        if claim.predicate_type != statement.EXPORT or type(at_ms) is not int:
            raise FormatError("not an export statement")
        dsse.verify_envelope(envelope, self._trust.keys("attestation", at_ms))
        if claim.subject != (statement.Subject(archive.MANIFEST, state.manifest_digest_hex),):
            raise VerificationError("the export statement is about another manifest")
        expected = {
            "v": 1,
            "tenant": state.tenant,
            "origin": state.origin,
            "first": state.first,
            "size": state.head.size,
            "root": state.head.root.hex(),
            "erased": len(state.erased),
            "exported_at_ms": at_ms,
        }
        if claim.predicate != expected:
            raise VerificationError("the export statement is about another tenant or range")
        return f"exported at {_time_text(at_ms)}"

    # Step 11.
    def _isolation(self) -> str:
        state = self._state
        state.isolation = isolation.isolation(
            state.tenant, ((leaf, self._record(index)) for index, leaf in self._entries())
        )
        if archive.ISOLATION in self._archive:
            self._file = archive.ISOLATION
            claim = self._verify_attestation(archive.ISOLATION, state.leaves[-1].time_ms if state.leaves else 0)
            if claim.predicate_type != statement.ISOLATION or claim.predicate != state.isolation.to_predicate():
                raise VerificationError("the signed isolation answer is not the one that these entries give")
        return state.isolation.answer

    # Step 12.
    def _replays(self) -> str:
        replayed = 0
        for index, leaf in self._entries():
            record = self._record(index) if leaf.kind == "decision" else None
            if record is None or self._replay is None:
                continue
            facts = [self._parse(f"facts/{digest_hex}.json") for digest_hex in record["facts"]]
            bundle = self._parse(f"bundles/{record['bundle']}.json")
            self._file = _RECORD_NAME.format(index)
            try:
                self._replay(record, facts, bundle)
            except Exception as error:
                raise VerificationError(f"decision {index} does not come out the same: {error}") from error
            replayed += 1
        self._state.counts["replayed"] = replayed
        return f"{replayed} decisions"

    def _parse_named(self, name: str) -> Any:
        return self._json(name)

    def _json(self, name: str, max_bytes: int = MAX_JSON_BYTES) -> Any:
        self._file = name
        return canonical.loads(self._archive.read(name, max_bytes), max_bytes=max_bytes, canonical=True)


def entries_text(first: int, size: int) -> str:
    """Which entries those from ``first`` up to a log's size are, counted from 0."""
    return f"entries {first} to {size - 1}" if first < size else "no entries"


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


def _time_text(time_ms: int) -> str:
    """A moment as people read it, in UTC."""
    try:
        return f"{dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):  # A time beyond the calendar is no reason to fail.
        return f"{time_ms} ms after 1970"


def _names_of(record: Mapping[str, Any]) -> list[str]:
    """The files a decision names."""
    facts, bundle = record.get("facts"), record.get("bundle")
    if not isinstance(facts, list) or len(facts) > _FACTS_PER_DECISION:
        raise FormatError("a decision lists the facts it was made on")
    if not all(statement.is_sha256_hex(digest_hex) for digest_hex in (*facts, bundle)):
        raise FormatError("a decision names facts and bundle by SHA-256")
    return [*(f"facts/{digest_hex}.json" for digest_hex in facts), f"bundles/{bundle}.json"]


def _check_warrant(warrant: Warrant, record: Mapping[str, Any]) -> None:
    """Check that a decision allowed what a warrant permits."""
    if record["decision"] != "allow":
        raise VerificationError("the warrant's decision was a deny")
    if hashlib.sha256(canonical.dumps(record)).hexdigest() != warrant.decision.record_digest:
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
