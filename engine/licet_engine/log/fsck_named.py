"""Check what a log names, and who signed it: facts, bundles, attestations, decisions, checkpoints, cosignatures, and the signer's last word.

Rules kept here:

- Whatever an entry names by digest is there, and is what the digest says; what is there as evidence, an entry names.
- Signatures are verified with the keys of the installation's trust root, and cosignatures with those of its policy.
- The log holds what the signer last signed: if not, going on from it would be a fork.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, func, select

from licet_attestations import canonical, dsse
from licet_attestations.checkpoint import verify_checkpoint
from licet_attestations.cosignature import verify_cosignatures
from licet_attestations.erasure import KIND, erased_by
from licet_attestations.errors import FormatError, LicetAttestationError, VerificationError
from licet_attestations.tlogpolicy import Policy
from licet_attestations.trustroot import TrustRoot
from licet_engine.log import store
from licet_engine.log.errors import NoSuchEntry
from licet_engine.store.tables import Attestation, Decision, FactBlob, PolicyBundle

FACTS: Final = store.table_of(FactBlob)
BUNDLES: Final = store.table_of(PolicyBundle)
ATTESTATIONS: Final = store.table_of(Attestation)
DECISIONS: Final = store.table_of(Decision)

Signed = tuple[int, bytes]
"""What the signer signed last of a log: size and root."""

LastSigned = Callable[[str], Signed | None]
"""Tells what the signer signed last of a tenant's log; None where it cannot be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """What a log is checked against, beside itself.

    Attributes:
        trust_root: Keys of its signatures.
        policy: Witnesses whose cosignatures are verified; None for none.
        last_signed: The signer's last checkpoints.
    """

    trust_root: TrustRoot
    policy: Policy | None
    last_signed: LastSigned


class Named:
    """Collects what the entries of one log name, and checks it.

    Args:
        connection: In a transaction that only reads.
        tenant_id: Whose log.
        against: What it is checked against.
        signed: What the signer signed last of it, told before the transaction began.
        add: Takes what is wrong, in words.
    """

    def __init__(
        self,
        connection: Connection,
        tenant_id: str,
        against: Against,
        signed: Signed | None,
        add: Callable[[str], None],
    ) -> None:
        self._connection = connection
        self._tenant_id = tenant_id
        self._against = against
        self._signed = signed
        self._add = add
        self._facts: set[str] = set()
        self._bundles: set[str] = set()
        self._attestations: dict[str, int] = {}
        self._unread = 0
        self._erased: dict[int, str] = {}
        self._erasures: dict[int, str] = {}

    def take(self, entries: list[store.Entry]) -> None:
        """Take note of what some consecutive entries name, and compare the table of decisions with them."""
        decided: dict[int, str | None] = {}
        for entry in entries:
            try:
                kind = entry.leaf.kind
                record: Any = None if entry.record is None else canonical.loads(entry.record)
            except FormatError as error:
                self._add(f"entry {entry.index} cannot be read: {error}")
                continue
            if record is None:
                self._erased[entry.index] = entry.leaf.commitment
            if kind == "decision":
                decided[entry.index] = self._decision(entry.index, record)
            elif kind == "attestation":
                self._attestation(entry.index, record)
            elif kind == KIND:
                self._erasure(entry.index, record)
        self._compare(entries, decided)

    def _compare(self, entries: list[store.Entry], decided: dict[int, str | None]) -> None:
        rows = self._connection.execute(
            select(DECISIONS.c.leaf_index, DECISIONS.c.id).where(
                DECISIONS.c.tenant_id == self._tenant_id,
                DECISIONS.c.leaf_index >= entries[0].index,
                DECISIONS.c.leaf_index <= entries[-1].index,
            )
        )
        listed = {row.leaf_index: row.id for row in rows}
        for index in sorted(decided.keys() | listed.keys()):
            if index not in decided:
                self._add(f"decision {listed[index]} is listed as entry {index}, which is none")
            elif index not in listed:
                self._add(f"the decision of entry {index} is not listed")
            elif decided[index] not in {None, listed[index]}:
                self._add(f"entry {index} is listed as decision {listed[index]}, and is {decided[index]}")

    def _decision(self, index: int, record: Any) -> str | None:
        if record is None:
            self._unread += 1
            return None
        try:
            self._facts.update(record["facts"])
            self._bundles.add(record["bundle"])
            return str(record["id"])
        except (KeyError, TypeError):
            self._add(f"the record of entry {index} is not a decision's")
            return None

    def _attestation(self, index: int, record: Any) -> None:
        if record is None:
            self._unread += 1
        elif isinstance(record, dict) and isinstance(record.get("digest"), str):
            self._attestations[record["digest"]] = index
        else:
            self._add(f"the record of entry {index} is not an attestation's")

    def _erasure(self, index: int, record: Any) -> None:
        try:
            self._erasures.update(erased_by(record))
        except (FormatError, AttributeError):
            self._add(f"the record of entry {index} is not an erasure's")

    def finish(self, size: int) -> None:
        """Check all that was named, and who signed."""
        for index in sorted(self._erased.keys() - self._erasures.keys()):
            self._add(f"the record of entry {index} is gone, and no erasure in the log names it")
        for index in sorted(self._erased.keys() & self._erasures.keys()):
            if self._erased[index] != self._erasures[index]:
                self._add(f"the erasure of the record of entry {index} names another commitment than its leaf has")
        for index in sorted(self._erasures.keys() - self._erased.keys()):
            self._add(f"the record of entry {index} is there, and the log says that it was erased")
        self._check_bodies("fact", FACTS, FACTS.c.body, self._facts)
        self._check_bodies("bundle", BUNDLES, BUNDLES.c.body, self._bundles)
        self._check_attestations()
        self._check_listed(size)
        self._check_checkpoints()
        self._check_cosignatures()
        self._check_signer(size)

    def _check_bodies(self, what: str, table: Any, body: Any, named: set[str]) -> None:
        found: set[str] = set()
        for digest_hex, data in self._connection.execute(
            select(table.c.digest_hex, body).where(table.c.tenant_id == self._tenant_id)
        ):
            found.add(digest_hex)
            if hashlib.sha256(data).hexdigest() != digest_hex:
                self._add(f"{what} {digest_hex[:16]} is not what its digest says")
        for digest_hex in sorted(named - found):
            self._add(f"{what} {digest_hex[:16]} is named in the log, and is not there")

    def _check_attestations(self) -> None:
        trust = self._against.trust_root
        keys = (*trust.every_key("attestation"), *trust.every_key("warrant"))
        found: set[str] = set()
        query = select(ATTESTATIONS.c.digest_hex, ATTESTATIONS.c.leaf_index, ATTESTATIONS.c.envelope)
        for row in self._connection.execute(query.where(ATTESTATIONS.c.tenant_id == self._tenant_id)):
            found.add(row.digest_hex)
            name = f"attestation {row.digest_hex[:16]}"
            try:
                payload = dsse.verify_envelope(dsse.Envelope.from_json(row.envelope.encode()), keys)
            except LicetAttestationError as error:
                self._add(f"{name} is not signed by this installation: {error}")
                continue
            if hashlib.sha256(payload).hexdigest() != row.digest_hex:
                self._add(f"{name} is not what its digest says")
            index = self._attestations.get(row.digest_hex)
            if index != row.leaf_index and not (index is None and self._unread):
                self._add(f"{name} is said to be entry {row.leaf_index}, and the log names it in {index}")
        for digest_hex in sorted(self._attestations.keys() - found):
            self._add(f"attestation {digest_hex[:16]} is named in the log, and is not there")

    def _check_listed(self, size: int) -> None:
        beyond = self._connection.execute(
            select(func.count())
            .select_from(DECISIONS)
            .where(
                DECISIONS.c.tenant_id == self._tenant_id,
                (DECISIONS.c.leaf_index >= size) | (DECISIONS.c.leaf_index < 0),
            )
        ).scalar_one()
        if beyond:
            self._add(f"{beyond} decisions are listed beyond the end of the log")

    def _check_checkpoints(self) -> None:
        trust = self._against.trust_root
        query = select(store.CHECKPOINTS.c.size, store.CHECKPOINTS.c.note).where(
            store.CHECKPOINTS.c.tenant_id == self._tenant_id
        )
        for size, note in self._connection.execute(query):
            try:
                verify_checkpoint(note, trust.origin(self._tenant_id), trust.every_key("log"))
            except VerificationError as error:
                self._add(f"the checkpoint of size {size} is not signed: {error}")

    def _check_cosignatures(self) -> None:
        policy = self._against.policy
        witnesses = {} if policy is None else {w.key.key.keyid: w.key for w in policy.witnesses.values()}
        query = (
            select(
                store.COSIGNATURES.c.size,
                store.COSIGNATURES.c.keyid,
                store.COSIGNATURES.c.line,
                store.CHECKPOINTS.c.note,
            )
            .select_from(
                store.COSIGNATURES.outerjoin(
                    store.CHECKPOINTS,
                    (store.CHECKPOINTS.c.tenant_id == store.COSIGNATURES.c.tenant_id)
                    & (store.CHECKPOINTS.c.size == store.COSIGNATURES.c.size),
                )
            )
            .where(store.COSIGNATURES.c.tenant_id == self._tenant_id)
        )
        for size, keyid, line, note in self._connection.execute(query):
            name = f"the cosignature of size {size} by {keyid[:16]}"
            if note is None:
                self._add(f"{name} is of a checkpoint that is not there")
                continue
            # Of a witness that the policy does not name any more the key is not known: its lines are looked at, and not verified.
            key = witnesses.get(keyid)
            try:
                found = verify_cosignatures(note + line, () if key is None else (key,))
                if key is not None and key not in found:
                    self._add(f"{name} is not that witness's")
            except VerificationError as error:
                self._add(f"{name} is none: {error}")

    def _check_signer(self, size: int) -> None:
        if self._signed is None or not self._signed[0]:
            return
        signed, root = self._signed
        if signed > size:
            self._add(f"the signer signed {signed} entries, and the log has {size}: it was put back")
            return
        try:
            if store.root_at(self._connection, self._tenant_id, signed) != root:
                self._add(f"the first {signed} entries are not those that the signer signed last")
        except NoSuchEntry as error:
            self._add(f"what the signer signed last cannot be compared: {error}")
