"""The offline verifier of evidence archives.

The steps, in order; every failure names its step and the file:

 1. form        The archive is a zip file of the one allowed form, with the layout's files only, within bounds.
 2. manifest    Every file has the size and SHA-256 that the manifest gives it; none is missing and none is extra.
 3. checkpoint  The log is the tenant's under the pinned trust root, and a pinned log key signed its checkpoint; with a policy of the
                caller's, its quorum of witnesses cosigned it.
 4. leaves      The leaves, from the frontier before them, lead to the root of the checkpoint: by themselves, or by a proof that the
                signed tree extends theirs.
 5. window      The entries around them are the log's and lie outside of the time asked for, so none of that time is withheld.
 6. records     Every record is what its leaf commits to; none is missing unless an entry behind it in the log says that it was erased.
 7. headers     Time never runs backwards, the log key was valid at the last entry's time, and every header agrees with its
                record in kind, actor, owner and time.
 8. decisions   Every fact and bundle that a decision names is there, under its digest, and no other is.
 9. signatures  Every attestation bears the signature of a pinned key for its purpose, valid when it was logged; the log has an entry
                for every one, and every one the log has an entry for is there.
10. warrants    Every warrant leads back to a decision in the log that allowed its action.
11. policies    Of the policies that decisions were made under it is told which were proved to allow nothing across tenants.
12. export      A pinned attestation key signed the statement that names the manifest, the tenant and the range.
13. isolation   The isolation answer, computed anew; a signed one in the archive must say the same.
14. directory   If the archive has it: the log is the one that the directory of all logs commits to.
15. replay      If asked for: every decision, evaluated again from its record, comes out the same.

Rules kept here:

- The trust root is the caller's. Nothing in an archive adds to it.
- Nothing is believed before the step that verifies it; every parse is strict and bounded.
- Steps 6 to 10 go over the entries together, chunk by chunk, each entry through all of them: `entry_steps`. So memory is bounded, and the first
  entry at fault is the one that is told.
- What was not or cannot be verified is said in the report (``limits``), in words.
- ``VerificationError`` is all that is raised for a bad archive; ``OSError`` where it cannot be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from licet_attestations import archive, canonical, checkpoint, dsse, isolation, merkle, statement, tlogpolicy
from licet_attestations.directory import verify_archive_file
from licet_attestations.entries import Entries
from licet_attestations.entry_steps import Decisions, EntryStep, Headers, Isolated, Pass, Records, Signatures, Warrants
from licet_attestations.errors import FormatError, LicetAttestationError, VerificationError
from licet_attestations.evidence import export_statement
from licet_attestations.leaf import Leaf
from licet_attestations.window import MAX_OUTSIDE_BYTES, Outside, Window, moment

if TYPE_CHECKING:
    from pathlib import Path

    from licet_attestations.tlogpolicy import Policy
    from licet_attestations.trustroot import TrustRoot

Replay = Callable[[Mapping[str, Any], list[Mapping[str, Any]], Mapping[str, Any]], object]
"""``replay(record, facts, bundle)`` evaluates a decision again from its record; it raises if the outcome is another."""

Progress = Callable[[int, int], None]
"""Told how many entries were gone over, of how many."""


class Step(NamedTuple):
    """A step of the verifier.

    Attributes:
        name: Short name.
        title: What is known once it is passed.
        shows: The same at length: how, and against whom it helps.
    """

    name: str
    title: str
    shows: str


STEPS: tuple[Step, ...] = (
    Step(
        "form",
        "the archive has the one allowed form",
        "There is one way to write an archive of this content. Every header is made again and compared, so nothing is hidden between the files, "
        "none has two contents, none is compressed, and none would be unpacked elsewhere.",
    ),
    Step(
        "manifest",
        "every file is the one in the manifest, and none is extra",
        "The SHA-256 of every file is computed and compared. The manifest itself counts for nothing until step 12 shows who signed it.",
    ),
    Step(
        "checkpoint",
        "a pinned log key signed the checkpoint of this tenant's log",
        "The key is one of those in the trust root that you hold. The name of the log follows from your trust root and the tenant. With your own "
        "tlog-policy, enough of your witnesses also signed that they saw this very log, so that no other was shown to somebody else.",
    ),
    Step(
        "leaves",
        "the leaves lead to the checkpoint's root",
        "The Merkle tree (RFC 6962) is built from the leaves in the archive. Had one been changed, moved, added or left out, its root would be "
        "another than the one that was signed.",
    ),
    Step(
        "window",
        "every entry of the time asked for is there",
        "The entry before the first and the one after the last are in the signed tree right beside it, and are of another time. As time never runs "
        "backwards in the log, nothing of that time is anywhere else.",
    ),
    Step(
        "records",
        "every record is what its leaf commits to",
        "A leaf holds the SHA-256 of a random salt and the record. A record that is not there was erased: an entry behind it in the log says so, by "
        "whom and why. That something happened, when, by whose principal and on whose things stays in the leaf.",
    ),
    Step(
        "headers",
        "time never runs backwards, and headers agree with records",
        "What a leaf says of its record without showing it (kind, actor, owner, time) is what the record says itself. So the headers of erased "
        "records can be relied on as much as those of the others.",
    ),
    Step(
        "decisions",
        "every fact and bundle that a decision names is there",
        "A decision names by SHA-256 the facts and the policies that it was made on. They are there, and are those. So anybody can see why it came "
        "out as it did, and evaluate it again (step 15).",
    ),
    Step(
        "signatures",
        "pinned keys signed every attestation, and the log names each",
        "Each was signed by a key of the right purpose that was valid at the time of its entry. None is there that the log does not name, and none "
        "that it names is missing.",
    ),
    Step(
        "warrants",
        "every warrant leads back to a decision that allowed it",
        "What was executed was executed under a signed warrant. Each names a decision in this log, which allowed this action to this principal on "
        "these things, shortly before.",
    ),
    Step(
        "policies",
        "which policies were proved to keep tenants apart",
        "Before policies are published, and soon after a tenant was made for those it comes with, a solver looks for any request that they would "
        "allow across tenants, among all that could be made. What it found is attested, and those attestations are here. Policies of which there is "
        "none are named below, in what was not verified.",
    ),
    Step(
        "export",
        "a pinned key signed the manifest and the range",
        "Who exported the archive vouches for all of it, also for the files that are made for people (report.html, index.json, entries.csv, oscal.json), "
        "which are not verified one by one.",
    ),
    Step(
        "isolation",
        "the isolation answer is computed anew",
        "From the headers of every entry it is counted which other tenants stand in this log, and what was decided on them. A signed answer in the "
        "archive says the same.",
    ),
    Step(
        "directory",
        "the directory of all logs has this log",
        "All tenants' logs are committed to together, in a log of their own. This log is the one under the tenant's name there, so the tenant was not "
        "shown a log of which nobody else knows.",
    ),
    Step(
        "replay",
        "every decision comes out the same when evaluated again",
        "Each was decided again, by the policies and facts in the archive. What was recorded is what the policies say.",
    ),
)

MAX_JSON_BYTES = 16 * 1024 * 1024
_NAMED = 8


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
        end: The entry after the last.
        size: Size of the log at the checkpoint.
        from_ms: The time from which on every entry is there; None: from the log's beginning.
        to_ms: And up to which; None: to the checkpoint.
        root_hex: Root of the tree at the checkpoint.
        steps: What was verified.
        policies: SHA-256 of the policies that decided, and of the attestation that they were proved to allow nothing across tenants,
            or no text.
        counts: Entries by kind, and ``erased``, ``allow``, ``deny``, ``attestations``, ``warrants``, ``replayed``.
        isolation: The isolation answer.
        limits: What was not or cannot be verified.
    """

    tenant: str
    origin: str
    first: int
    end: int
    size: int
    from_ms: int | None
    to_ms: int | None
    root_hex: str
    steps: tuple[StepResult, ...]
    policies: Mapping[str, str]
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
            "end": self.end,
            "size": self.size,
            "from_ms": self.from_ms,
            "to_ms": self.to_ms,
            "root": self.root_hex,
            "steps": [{"step": s.number, "name": s.name, "title": s.title, "detail": s.detail} for s in self.steps],
            "policies": dict(self.policies),
            "counts": dict(self.counts),
            "isolation": self.isolation.to_predicate(),
            "limits": list(self.limits),
        }

    def sentence(self) -> str:
        """What the archive is of, in words."""
        entries = (
            f"entries {self.first} to {self.end - 1}" if self.first < self.end else "no entry, so nothing is said of it"
        )
        times = [
            *([] if self.from_ms is None else [f"from {moment(self.from_ms)}"]),
            *([] if self.to_ms is None else [f"to {moment(self.to_ms)}"]),
        ]
        window = f", all {' '.join(times)}" if times else ""
        return f"{self.origin}, {entries}{window}"


def verify_archive(
    path: Path,
    trust: TrustRoot,
    *,
    expected_tenant: str | None = None,
    replay: Replay | None = None,
    policy: Policy | None = None,
    progress: Progress = lambda _done, _count: None,
) -> Report:
    """Verify an evidence archive against a pinned trust root, and return what it shows.

    Args:
        path: The archive; nothing in it is trusted.
        trust: The keys that the caller pins.
        expected_tenant: Whose archive it must be; anyone's if not given.
        replay: Evaluates a decision again; without it, step 15 is left out and the report says so.
        policy: Whose quorum of witnesses must have cosigned the checkpoint; without it nobody need have, and the report says so.
        progress: Told of the entries that were gone over.

    Raises:
        VerificationError: The archive does not prove what it claims; ``step`` and ``where`` tell which and where.
        OSError: The archive cannot be read.
    """
    with contextlib.ExitStack() as stack:
        return _Verification(path, trust, expected_tenant, replay, policy, progress).run(stack)


@dataclass
class _State:
    """What the steps so far have established; each field is set by the step named behind it."""

    archive: archive.Archive = field(init=False)  # 1
    manifest_digest_hex: str = ""  # 2
    manifest_tenant: object = None  # 2
    window: Window = field(init=False)  # 3
    note: str = ""  # 3
    head: checkpoint.Checkpoint = field(init=False)  # 3
    outside: dict[int, Outside] = field(default_factory=dict)  # 5
    over: Pass = field(init=False)  # 6 to 10
    known_ms: int = 0  # 7: when the latest entry is of that the archive shows
    policies: dict[str, str] = field(default_factory=dict)  # 11
    exported_at_ms: int = 0  # 12
    limits: list[str] = field(default_factory=list)  # any


class _Verification:
    def __init__(  # noqa: PLR0917  # What verify_archive was given, as it was.
        self,
        path: Path,
        trust: TrustRoot,
        expected_tenant: str | None,
        replay: Replay | None,
        policy: Policy | None,
        progress: Progress,
    ) -> None:
        self._policy = policy
        self._path = path
        self._trust = trust
        self._expected_tenant = expected_tenant
        self._replay = replay
        self._progress = progress
        self._state = _State()
        self._file = ""  # The file at hand, for failures that do not name their own.
        self._results: list[StepResult] = []

    def run(self, stack: contextlib.ExitStack) -> Report:
        state = self._state
        with self._step("form") as passed:
            state.archive = stack.enter_context(archive.Archive(self._path))
            passed(f"{len(state.archive.members)} files, {state.archive.size} bytes")
        for name, step in (
            ("manifest", self._manifest),
            ("checkpoint", self._checkpoint),
            ("leaves", self._leaves),
            ("window", self._window),
        ):
            with self._step(name) as passed:
                passed(step())
        isolated = self._go_over_entries()
        with self._step("policies") as passed:
            passed(self._policies())
        with self._step("export") as passed:
            passed(self._export())
        with self._step("isolation") as passed:
            answer = isolated.answer()
            passed(self._isolation(answer))
        if archive.DIRECTORY in state.archive:
            with self._step("directory") as passed:
                passed(self._directory())
        else:
            state.limits.append("The archive has nothing of the directory of all logs.")
        if self._replay is not None:
            with self._step("replay") as passed:
                passed(self._replays(self._replay))
        else:
            state.limits.append("Decisions were not evaluated again; use --replay to do so.")
        if self._policy is None:
            state.limits.append("Nobody was asked who else saw this log: without --tlog-policy no witness need have.")
        if reports := sorted(archive.REPORTS & set(state.archive.members)):
            state.limits.append(
                f"{', '.join(reports)}: made from the rest by who exported it, and not compared with it here."
            )
        window = state.window
        return Report(
            tenant=window.tenant,
            origin=window.origin,
            first=window.first,
            end=window.end,
            size=window.size,
            from_ms=window.from_ms,
            to_ms=window.to_ms,
            root_hex=state.head.root.hex(),
            steps=tuple(self._results),
            policies=state.policies,
            counts=state.over.counts,
            isolation=answer,
            limits=(*state.limits, *isolation.LIMITS),
        )

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Run a step in the block; what is raised in it fails there, and what it passes to the callback is its detail."""
        number = 1 + next(n for n, step in enumerate(STEPS) if step.name == name)
        self._file = ""
        try:
            yield lambda detail: self._results.append(StepResult(number, name, STEPS[number - 1].title, detail))
        except LicetAttestationError as error:
            # Who reads the archive names the file at fault itself.
            where = getattr(error, "where", None) or self._file or self._path.name
            raise VerificationError(str(error), step=f"{number}. {name}", where=where) from error

    # Step 2.
    def _manifest(self) -> str:
        state = self._state
        state.manifest_digest_hex = self._hash(archive.MANIFEST)
        manifest = self._json(archive.MANIFEST)
        if not isinstance(manifest, dict) or set(manifest) != {"v", "tenant", "files"}:
            raise FormatError("not a manifest")
        if manifest["v"] != archive.VERSION:
            raise FormatError(
                f"the archive's layout is version {manifest['v']!r}; this verifier reads version {archive.VERSION}"
            )
        listed = manifest["files"]
        if not isinstance(listed, dict):
            raise FormatError("a manifest lists files by name")
        for name in sorted(set(state.archive.members) ^ (set(listed) | archive.UNLISTED)):
            what = "is in the manifest and not in the archive" if name in listed else "is not in the manifest"
            raise VerificationError(f"a file {what}", where=name)
        for name, member in state.archive.members.items():
            entry = {"sha256": self._hash(name), "size": member.size}
            if name not in archive.UNLISTED and listed[name] != entry:
                raise VerificationError("the file is not the one in the manifest: its content was changed")
        state.manifest_tenant = manifest["tenant"]
        return f"{len(listed)} files"

    def _hash(self, name: str) -> str:
        """SHA-256 of a file, whose checksum in the directory is checked on the way."""
        self._file = name
        digest, crc = hashlib.sha256(), 0
        for chunk in self._state.archive.chunks(name):
            digest.update(chunk)
            crc = zlib.crc32(chunk, crc)
        if crc != self._state.archive.members[name].crc:
            raise VerificationError(
                "the file's content was changed: it has not the checksum in the archive's directory"
            )
        return digest.hexdigest()

    # Step 3.
    def _checkpoint(self) -> str:
        state = self._state
        state.window = window = Window.from_json(self._json(archive.RANGE))
        if window.tenant != state.manifest_tenant:
            raise FormatError("the range is not of the manifest's tenant")
        self._expect_chunks()
        # 3a. The origin follows from the pinned trust root and the tenant, not from the archive.
        self._file = archive.RANGE
        if window.origin != self._trust.origin(window.tenant):
            raise VerificationError(
                f"log {window.origin!r} is not the one of {window.tenant!r} under the pinned trust root"
            )
        if self._expected_tenant not in (None, window.tenant):
            raise VerificationError(f"the archive is of tenant {window.tenant!r}, not of {self._expected_tenant!r}")
        # 3b. A pinned log key signed.
        self._file = archive.CHECKPOINT
        try:
            state.note = state.archive.read(archive.CHECKPOINT, checkpoint.MAX_NOTE_BYTES).decode()
        except UnicodeDecodeError as error:
            raise FormatError("the checkpoint is not UTF-8") from error
        keys = tlogpolicy.log_keys(state.note, self._policy, self._trust)
        state.head = checkpoint.verify_checkpoint(state.note, window.origin, keys)
        if state.head.size != window.size:
            raise VerificationError(f"the checkpoint is of {state.head.size} entries, the range of {window.size}")
        told = f"{window.origin}, {state.head.size} entries"
        # 3c. The quorum of the caller's own policy cosigned; what a policy comes with the archive counts for nothing.
        if self._policy is None:
            return told
        found = tlogpolicy.verify(state.note, self._policy, window.origin, keys)
        seen = ", ".join(sorted(found.cosignatures)) or "nobody"
        return f"{told}, cosigned by {seen}"

    def _expect_chunks(self) -> None:
        """See that there are chunks of leaves and records for the range, and no chunks but those."""
        window, members = self._state.window, self._state.archive.members
        if archive.chunk_count(window.first, window.end) > len(members):
            raise VerificationError(
                f"the range has {window.end - window.first} entries, and the archive has not the chunks"
            )
        starts = set(archive.chunk_starts(window.first, window.end))
        due = {archive.chunk_name(folder, s) for folder in (archive.LEAVES, archive.RECORDS) for s in starts}
        may = due | {archive.chunk_name(folder, s) for folder in (archive.FACTS, archive.ATTESTATIONS) for s in starts}
        there = {name for name in members if archive.is_chunk(name)}
        for name in sorted(due - there):
            raise VerificationError("the archive lacks a chunk of its range", where=name)
        for name in sorted(there - may):
            raise VerificationError("a chunk is not of the archive's range", where=name)

    # Step 4.
    def _leaves(self) -> str:
        window = self._state.window
        tree = merkle.Frontier(window.first, window.frontier_first)
        for chunk in self._entries().chunks():
            name = chunk.name(archive.LEAVES)
            for text in chunk.leaves():
                self._file = f"{name}, entry {tree.size}"
                Leaf.from_bytes(text)
                tree.append(merkle.leaf_hash(text))
        self._file = archive.CHECKPOINT if window.end == window.size else archive.RANGE
        window.verify_end(tree, self._state.head.root)
        self._file = archive.RANGE
        if tree.hashes() != list(window.frontier_end):
            raise VerificationError("the frontier behind the last entry is another than the leaves make")
        if window.first:
            self._state.limits.append(
                f"Entries before {window.first} are not in the archive; only their place in the tree is."
            )
        if window.end < window.size:
            self._state.limits.append(
                f"Entries from {window.end} on are not in the archive; only their place in the tree is."
            )
        return f"{_entries_text(window)}, root {self._state.head.root.hex()[:16]}"

    # Step 5.
    def _window(self) -> str:
        state, window = self._state, self._state.window
        self._file = archive.OUTSIDE
        if archive.OUTSIDE in state.archive:
            last = -1
            if state.archive.members[archive.OUTSIDE].size > MAX_OUTSIDE_BYTES:
                raise VerificationError(f"it has more than the {MAX_OUTSIDE_BYTES} bytes allowed")
            for line in state.archive.lines(archive.OUTSIDE, MAX_JSON_BYTES):
                found = Outside.from_bytes(line)
                if found.index <= last or window.first <= found.index < window.end:
                    raise VerificationError(f"entry {found.index} is out of order, or within the range")
                last = found.index
                found.verify(window.size, state.head.root)
                state.outside[found.index] = found
        window.verify_times(state.outside)
        return _window_text(window)

    # Steps 6 to 10.
    def _go_over_entries(self) -> Isolated:
        state = self._state
        state.over = over = Pass(state.archive, state.window, state.outside, self._trust)
        isolated = Isolated(over)
        steps: tuple[EntryStep, ...] = (
            Records(over),
            headers := Headers(over),
            Decisions(over),
            signatures := Signatures(over),
            Warrants(over, signatures),
            isolated,
        )
        now: EntryStep = steps[0]
        count = state.window.end - state.window.first
        try:
            for chunk in self._entries().chunks():
                self._progress(chunk.start - state.window.first, count)
                over.chunk = chunk
                now = steps[0]
                for step in steps:
                    now = step
                    step.begin()
                now = steps[0]
                name = chunk.name(archive.RECORDS)
                over.where = f"{name}, entry {chunk.start}"
                for entry in chunk.entries():
                    for step in steps:
                        now = step
                        step.take(entry)
                        over.where = f"{name}, entry {entry.index}"
                    now = steps[0]
                    over.where = f"{name}, entry {entry.index + 1}"
                for step in steps:
                    now = step
                    step.end()
            for step in steps:
                now = step
                over.where = ""
                step.finish()
            now = headers
            over.where = archive.CHECKPOINT
            self._verify_log_key(headers.last_ms)
        except LicetAttestationError as error:
            with self._step(now.name):
                raise VerificationError(str(error), where=getattr(error, "where", None) or over.where) from error
        self._progress(count, count)
        for step in steps[:-1]:
            with self._step(step.name) as passed:
                passed(step.detail)
            state.limits += step.limits
        return isolated

    def _verify_log_key(self, last_ms: int) -> None:
        """The key that signed the checkpoint counted at the time of the last entry that is known."""
        state = self._state
        known_ms = max([last_ms, *(outside.leaf.time_ms for outside in state.outside.values())])
        state.known_ms = known_ms
        if known_ms:
            keys = tlogpolicy.log_keys(state.note, self._policy, self._trust, known_ms)
            checkpoint.verify_checkpoint(state.note, state.window.origin, keys)

    # Step 11.
    def _policies(self) -> str:
        state = self._state
        state.policies = {name: state.over.examined.get(name, (-1, ""))[1] for name in sorted(state.over.decided_by)}
        unproved = [name for name, attestation in state.policies.items() if not attestation]
        # Somebody looked, and found a request that they allow.
        refuted = [name for name in unproved if name in state.over.examined]
        for names, what in (
            (
                [name for name in unproved if name not in refuted],
                "nothing here says that they were proved to allow nothing across tenants",
            ),
            (refuted, "it is attested that they were found to allow something across tenants"),
        ):
            if names:
                some = ", ".join(name[:16] for name in names[:_NAMED]) + (" and more" if len(names) > _NAMED else "")
                state.limits.append(f"Of {len(names)} policy bundles {what}: {some}.")
        return f"{len(state.policies)} bundles, {len(state.policies) - len(unproved)} of them proved"

    # Step 12.
    def _export(self) -> str:
        state = self._state
        self._file = archive.STATEMENT
        envelope = dsse.Envelope.from_json(state.archive.read(archive.STATEMENT, dsse.MAX_ENVELOPE_BYTES))
        claim = statement.Statement.from_bytes(envelope.payload)
        at_ms = claim.predicate.get("exported_at_ms")
        if claim.predicate_type != statement.EXPORT or type(at_ms) is not int:
            raise FormatError("not an export statement")
        state.exported_at_ms = at_ms
        # Nothing but the statement tells when it was signed: it was not before what it is about.
        self._trust.verify_envelope(envelope, "attestation", self._trust.keys_that_vouch("attestation", at_ms))
        if at_ms < state.known_ms:
            raise VerificationError("the export says that it was made before the last entry that is in it")
        if claim.subject != (statement.Subject(archive.MANIFEST, state.manifest_digest_hex),):
            raise VerificationError("the export statement is about another manifest")
        erased = state.over.counts["erased"]
        if claim != export_statement(state.window, state.head.root, state.manifest_digest_hex, erased, at_ms):
            raise VerificationError("the export statement is about another tenant or range")
        return f"exported at {moment(at_ms)}"

    # Step 13.
    def _isolation(self, answer: isolation.Isolation) -> str:
        state = self._state
        if archive.ISOLATION in state.archive:
            self._file = archive.ISOLATION
            data = state.archive.read(archive.ISOLATION, dsse.MAX_ENVELOPE_BYTES)
            claim = statement.Statement.from_bytes(dsse.Envelope.from_json(data).payload)
            # It is as old as the export, whose time step 12 verified.
            keys = self._trust.keys_that_vouch("attestation", state.exported_at_ms)
            dsse.verify_envelope(dsse.Envelope.from_json(data), keys)
            if claim.predicate_type != statement.ISOLATION or claim.predicate != answer.to_predicate():
                raise VerificationError("the signed isolation answer is not the one that these entries give")
        return answer.answer

    # Step 14.
    def _directory(self) -> str:
        state, window = self._state, self._state.window
        self._file = archive.DIRECTORY
        leaves = (Leaf.from_bytes(text) for chunk in self._entries().chunks() for text in chunk.leaves())
        opened, is_whole = verify_archive_file(
            state.archive.read(archive.DIRECTORY, MAX_JSON_BYTES),
            self._trust,
            window.tenant,
            first=window.first,
            end=window.end,
            size=window.size,
            root=state.head.root,
            leaves=leaves,
        )
        if not is_whole:
            state.limits.append(
                "The pairs that the directory has of this log were not made again: that takes the log from its beginning."
            )
        return f"it has {opened.state.size} entries of this log"

    # Step 15.
    def _replays(self, replay: Replay) -> str:
        bundles: dict[str, Any] = {}
        replayed = 0
        for chunk in self._entries().chunks():
            facts: dict[str, Any] = {}
            for entry in chunk.entries():
                if entry.leaf.kind != "decision" or entry.record is None:
                    continue
                for name in entry.record["facts"]:
                    if name not in facts:
                        facts[name] = canonical.loads(chunk.facts[name])
                bundle_hex = entry.record["bundle"]
                if bundle_hex not in bundles:
                    bundles.clear()  # They come one after the other.
                    bundles[bundle_hex] = self._json(archive.bundle_name(bundle_hex))
                self._file = f"{chunk.name(archive.RECORDS)}, entry {entry.index}"
                try:
                    replay(entry.record, [facts[name] for name in entry.record["facts"]], bundles[bundle_hex])
                except Exception as error:
                    raise VerificationError(f"decision {entry.index} does not come out the same: {error}") from error
                replayed += 1
        self._state.over.counts["replayed"] = replayed
        return f"{replayed} decisions"

    def _entries(self) -> Entries:
        return Entries(self._state.archive, self._state.window)

    def _json(self, name: str) -> Any:
        self._file = name
        data = self._state.archive.read(name, MAX_JSON_BYTES)
        return canonical.loads(data, max_bytes=MAX_JSON_BYTES, canonical=True)


def _entries_text(window: Window) -> str:
    """Which entries those of a window are, counted from 0."""
    return f"entries {window.first} to {window.end - 1}" if window.first < window.end else "no entries"


def _window_text(window: Window) -> str:
    begins = "from the log's beginning" if window.from_ms is None else f"from {moment(window.from_ms)}"
    ends = "to the checkpoint" if window.to_ms is None else f"to {moment(window.to_ms)}"
    return f"{begins} {ends}"
