"""Warrants: signed, short-lived permissions to do one thing once. No warrant, no run.

Rules kept here:

- A warrant names the adapter instance, operation, step, attempt, resources, parameters and decision. Another of any of them
  is another act, and refused.
- It carries the proof that its decision is in the tenant's log: an adapter believes the log, not the signer's word alone.
- It lives at most ``MAX_LIFETIME_MS``. That it is used once only, the adapter's guard sees to: it marks the warrant spent,
  durably, before it acts.
- It touches nothing but what its decision was about: the record names that, and the operation's own outputs bear its id.
- Which operations a decision about an action may lead to is a fixed table, here.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from licet_attestations import canonical, dsse, statement, tlogproof
from licet_attestations.errors import FormatError, VerificationError, WarrantError
from licet_attestations.leaf import Leaf, is_tenant

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from licet_attestations.keys import PrivateKey, PublicKey
    from licet_attestations.trustroot import TrustRoot

MAX_LIFETIME_MS = 300_000
MAX_CLOCK_SKEW_MS = 5_000
"""How far in the future a warrant may have been issued: adapters' clocks differ from the signer's."""
MAX_DECISION_AGE_MS = 60_000
"""How old a decision may be when a warrant is made on it."""
MAX_WARRANT_BYTES = 256 * 1024

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/~-]{0,199}")
_MAX_RESOURCES = 256

OPERATIONS_OF: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "dataset.register": frozenset({"objects.put"}),
        "dataset.read": frozenset({"objects.get"}),
        "dataset.delete": frozenset({"objects.delete"}),
        "dataset.hold": frozenset({"objects.hold"}),
        "dataset.lift-hold": frozenset({"objects.lift"}),
        "training.launch": frozenset({"training.run", "objects.get", "objects.put"}),
        "model.register": frozenset({"registry.register", "objects.get", "objects.put"}),
        "model.check": frozenset({"checks.run", "registry.read", "objects.get"}),
        "model.download": frozenset({"registry.read", "objects.get"}),
        "model.promote": frozenset({"registry.promote"}),
        "model.roll-back": frozenset({"registry.promote"}),
        "model.hold": frozenset({"registry.hold"}),
        "model.lift-hold": frozenset({"registry.lift"}),
        "model.retire": frozenset({"registry.retire"}),
        "model.delete": frozenset({"registry.delete", "objects.delete"}),
        "endpoint.deploy": frozenset({"serving.deploy", "registry.read", "objects.get"}),
        "endpoint.shift-traffic": frozenset({"serving.shift"}),
        "endpoint.roll-back": frozenset({"serving.shift"}),
        "endpoint.retire": frozenset({"serving.retire"}),
        "endpoint.invoke": frozenset({"serving.invoke"}),
        "key.destroy": frozenset({"keys.destroy"}),
        "evidence.export": frozenset({"evidence.export"}),
        "ticket.fetch": frozenset({"tickets.fetch"}),
        "policy.publish": frozenset({"policy.examine"}),
    }
)
"""The operations that an allowed action may lead to; an action that is not here leads to none."""

_READING = frozenset(
    {"objects.get", "objects.delete", "registry.read", "registry.delete"}
    | {"objects.hold", "objects.lift", "registry.hold", "registry.lift"}
)
"""Operations that reach for content which is there already, and so was there to be decided on."""


def verify_touched(
    resources: Mapping[str, str], *, tenant: str, operation: str, operation_id: str, decided: Sequence[Any]
) -> None:
    """Verify that a step touches only what was decided on.

    A reference must be the tenant itself, one of the decided ones, a file of a decided version (``TENANT/MODEL@1/...``), or
    lie under the operation's own id, as what the operation makes does. A digest may be of anything that the operation
    makes; where content is read or deleted it must be decided on, too, unless the operation made it.

    Args:
        resources: What the step touches: a SHA-256 in hex or a reference, by name.
        tenant: Whose decision it is.
        operation: What the adapter is to do.
        operation_id: The accepted operation.
        decided: References and digests that the decision's record names.

    Raises:
        VerificationError: Which resource was not decided on.
    """
    permitted = {value for value in decided if isinstance(value, str)}
    references = {name: value for name, value in resources.items() if not statement.is_sha256_hex(value)}
    own = {name for name, value in references.items() if operation_id in value.split("/")}
    for name, value in references.items():
        if not (value == tenant or value.startswith(f"{tenant}/")):
            raise VerificationError(f"resource {name!r} is neither a digest nor this tenant's")
        # Only a version holds things under its name; below another name lies what is not the thing of that name.
        version = "/".join(value.split("/", 2)[:2])
        of_version = "@" in version and version in permitted
        if value != tenant and value not in permitted and name not in own and not of_version:
            raise VerificationError(f"resource {name!r} was not decided on")
    if operation in _READING and not own:
        for name, value in resources.items():
            if name not in references and value not in permitted:
                raise VerificationError(f"resource {name!r} is content that was not decided on")


@dataclass(frozen=True, slots=True)
class DecisionRef:
    """The decision a warrant stands on.

    Attributes:
        id: The decision's id.
        leaf_index: Its entry in the tenant's log.
        record_digest: Hex SHA-256 of its record bytes.
    """

    id: str
    leaf_index: int
    record_digest: str


@dataclass(frozen=True, slots=True)
class Warrant:
    """Permission for one attempt at one step of one operation.

    Attributes:
        id: Unique; what an adapter marks as spent.
        tenant: Whose log the decision is in.
        adapter: Name of the adapter instance that may act, such as ``local-training``.
        operation: What it may do, such as ``training.run``.
        step: Step within the accepted operation.
        attempt: 1 for the first try; each try has its own warrant.
        operation_id: The accepted operation.
        resources: What it may touch: a SHA-256 in hex or a reference, by name.
        parameters_digest_hex: SHA-256 of the canonical JSON of the parameters.
        decision: The allowing decision.
        principal: On whose behalf, such as ``Person::northbank/ana``.
        action: What was decided, such as ``training.launch``.
        issued_at_ms: When the signer made it.
        expires_at_ms: First moment it is void.
        log_proof: ``.tlog-proof`` text for the decision's leaf.
        leaf: The decision's leaf, as text.
    """

    id: str
    tenant: str
    adapter: str
    operation: str
    step: str
    attempt: int
    operation_id: str
    resources: Mapping[str, str]
    parameters_digest_hex: str
    decision: DecisionRef
    principal: str
    action: str
    issued_at_ms: int
    expires_at_ms: int
    log_proof: str
    leaf: str

    def __post_init__(self) -> None:
        names = (self.id, self.adapter, self.operation, self.step, self.operation_id, self.decision.id)
        if not all(isinstance(n, str) and _NAME.fullmatch(n) for n in names) or not is_tenant(self.tenant):
            raise FormatError("a warrant's id, tenant, adapter, operation, step and decision are plain names")
        texts = (self.principal, self.action, self.log_proof, self.leaf, *self.resources, *self.resources.values())
        if not all(isinstance(t, str) and t for t in texts) or len(self.resources) > _MAX_RESOURCES:
            raise FormatError(f"a warrant's texts are not empty, and its resources at most {_MAX_RESOURCES}")
        numbers = (self.attempt, self.decision.leaf_index, self.issued_at_ms, self.expires_at_ms)
        if not all(type(n) is int and n >= 0 for n in numbers) or self.attempt < 1:
            raise FormatError("a warrant's attempt, leaf index and times are integers, the attempt from 1")
        if not 0 < self.expires_at_ms - self.issued_at_ms <= MAX_LIFETIME_MS:
            raise FormatError(f"a warrant lives at most {MAX_LIFETIME_MS} ms")
        if not all(statement.is_sha256_hex(d) for d in (self.parameters_digest_hex, self.decision.record_digest)):
            raise FormatError("a warrant's digests are 64 lower-case hex characters")

    def to_statement(self) -> statement.Statement:
        """The warrant as an in-toto statement about the operation's step and its parameters."""
        predicate = {"v": 1} | asdict(self)
        subject = statement.Subject(f"operation/{self.operation_id}/{self.step}", self.parameters_digest_hex)
        return statement.Statement((subject,), statement.WARRANT, predicate)

    @classmethod
    def from_statement(cls, value: statement.Statement) -> Warrant:
        """Read a warrant's statement.

        Raises:
            FormatError: Not a warrant of this version.
        """
        predicate = dict(value.predicate)
        if value.predicate_type != statement.WARRANT or predicate.pop("v", None) != 1:
            raise FormatError("not a warrant of version 1")
        decision, resources = predicate.get("decision"), predicate.get("resources")
        if set(predicate) != _WARRANT_FIELDS or not isinstance(decision, dict) or not isinstance(resources, dict):
            raise FormatError("a warrant has exactly its own fields")
        if set(decision) != _DECISION_FIELDS:
            raise FormatError("a warrant's decision has exactly an id, a leaf index and a record digest")
        warrant = cls(**(predicate | {"decision": DecisionRef(**decision), "resources": resources}))
        if warrant.to_statement().subject != value.subject:
            raise FormatError("a warrant's subject is not its own step and parameters")
        return warrant


_WARRANT_FIELDS = frozenset(f.name for f in fields(Warrant))
_DECISION_FIELDS = frozenset(f.name for f in fields(DecisionRef))


def sign_warrant(warrant: Warrant, key: PrivateKey) -> bytes:
    """Sign ``warrant`` with a warrant key; the envelope as JSON."""
    return dsse.sign(warrant.to_statement().to_bytes(), dsse.IN_TOTO_PAYLOAD_TYPE, key).to_json()


def read_warrant(envelope: bytes) -> Warrant:
    """Read a warrant without verifying it: for logs and displays only.

    Raises:
        FormatError: Not a warrant.
    """
    if len(envelope) > MAX_WARRANT_BYTES:
        raise FormatError(f"a warrant has at most {MAX_WARRANT_BYTES} bytes")
    payload = dsse.Envelope.from_json(envelope).payload
    return Warrant.from_statement(statement.Statement.from_bytes(payload))


def verify_warrant_is_ours(envelope: bytes, *, trust: TrustRoot, now_ms: int) -> Warrant:
    """Verify that a warrant is genuine, live and logged, whatever it permits.

    Raises:
        WarrantError: ``forged``, ``expired`` or ``unlogged``.
    """
    # 1. It is a warrant, and a pinned warrant key that is valid now signed it.
    try:
        warrant = read_warrant(envelope)
        dsse.verify_envelope(dsse.Envelope.from_json(envelope), trust.keys("warrant", now_ms))
    except (FormatError, VerificationError) as error:
        raise WarrantError("forged", f"not a warrant of {trust.instance!r}: {error}") from error
    # 2. It is live.
    if now_ms >= warrant.expires_at_ms:
        raise WarrantError("expired", f"warrant {warrant.id} expired {now_ms - warrant.expires_at_ms} ms ago")
    if warrant.issued_at_ms > now_ms + MAX_CLOCK_SKEW_MS:
        raise WarrantError("expired", f"warrant {warrant.id} is from the future; check this machine's clock")
    # 3. Its decision is an entry of its tenant's log, under a checkpoint that a pinned log key signed.
    verify_logged(warrant, trust)
    return warrant


def verify_logged(warrant: Warrant, trust: TrustRoot, keys: Iterable[PublicKey] | None = None) -> Leaf:
    """Verify that the warrant's leaf is a decision of its tenant and is in the tenant's log; return the leaf.

    The key for warrants, whose signature is verified already, says since when the proof was there: at the latest since the warrant was
    issued. A log key that was compromised later counted then.

    Args:
        warrant: Read; its own signature is verified elsewhere.
        trust: Pinned keys.
        keys: Of the log, in their stead: every key there was, for who has the log itself and compares the leaf with that.

    Raises:
        WarrantError: ``unlogged``.
    """
    try:
        leaf = Leaf.from_bytes(warrant.leaf.encode())
        index, _ = tlogproof.verify(
            warrant.log_proof,
            warrant.leaf.encode(),
            trust.origin(warrant.tenant),
            trust.keys_seen("log", warrant.issued_at_ms) if keys is None else keys,
        )
    except (FormatError, VerificationError) as error:
        raise WarrantError(
            "unlogged", f"warrant {warrant.id} does not prove its decision is logged: {error}"
        ) from error
    if leaf.kind != "decision" or leaf.owner != warrant.tenant or index != warrant.decision.leaf_index:
        raise WarrantError("unlogged", f"warrant {warrant.id} names an entry that is not its tenant's decision")
    return leaf


def verify_warrant(
    envelope: bytes,
    *,
    trust: TrustRoot,
    adapter: str,
    operation: str,
    parameters: Any,
    resources: Mapping[str, str],
    now_ms: int,
) -> Warrant:
    """Verify that ``envelope`` permits exactly the act at hand, now, and return the warrant.

    That the warrant is not spent is not checked here: the adapter's guard does so, and marks it.

    Args:
        envelope: DSSE envelope as JSON, not trusted.
        trust: Pinned keys.
        adapter: Name of the adapter instance that is asked.
        operation: What it is asked to do.
        parameters: With what: any canonical-JSON value, compared by digest.
        resources: What it would touch, by name: exactly these, no more and no fewer.
        now_ms: The adapter's clock.

    Raises:
        WarrantError: Its ``reason`` tells the rule that is broken.
        FormatError: ``parameters`` has no canonical JSON.
    """
    # 1. to 3. It is genuine, live and logged.
    warrant = verify_warrant_is_ours(envelope, trust=trust, now_ms=now_ms)
    # 4. It is for this adapter and this operation, and its action may lead to that operation.
    if warrant.adapter != adapter:
        raise WarrantError("other-adapter", f"warrant {warrant.id} is for {warrant.adapter!r}, not {adapter!r}")
    if warrant.operation != operation or operation not in OPERATIONS_OF.get(warrant.action, frozenset()):
        raise WarrantError(
            "other-operation",
            f"warrant {warrant.id} of {warrant.action!r} permits {warrant.operation!r}, not {operation!r}",
        )
    # 5. It is for these parameters and these resources.
    if warrant.parameters_digest_hex != canonical.digest_hex(parameters):
        raise WarrantError("other-parameter", f"warrant {warrant.id} is for other parameters")
    if dict(warrant.resources) != dict(resources):
        raise WarrantError("other-resource", f"warrant {warrant.id} is for other resources")
    return warrant
