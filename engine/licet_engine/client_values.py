"""What the client gives back, and how it fails.

Rules kept here:

- A denial is a value: an ``Answer`` whose ``allowed`` is False. Errors are exceptions with one root, a subclass for each
  reaction of the caller, and the server's stable ``code``.
- Nothing is taken for a yes that does not say so: an answer without the word ``allow`` is not allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

APPROVAL = "approval:"
"""What a policy requires begins with this if it is an approval; the track follows."""


class LicetClientError(Exception):
    """Root of the client's errors.

    Attributes:
        code: Stable word; the server's own where it gave one.
        status: HTTP status, or None where there was no answer.
    """

    default_code = "client-error"

    def __init__(self, message: str, *, code: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.status = status


class RequestRefused(LicetClientError):  # Names the server's act; the root says it is an error.
    """What was sent is not acceptable: change it. Nothing was done."""

    default_code = "request-refused"


class NotAuthenticated(LicetClientError):  # As above.
    """The token is missing, unknown, expired or revoked: present another. Nothing was done."""

    default_code = "unauthenticated"


class StateConflict(LicetClientError):  # As above.
    """It was allowed, but the resource is not in a state for it: look at it again. Nothing was done."""

    default_code = "conflict"


class ServerUnavailable(LicetClientError):  # As above.
    """No answer, or "try later", in every attempt. Repeat the call with the same ``idempotency_key``: it is done once.

    Attributes:
        idempotency_key: The key that every attempt bore, or None if the call changes nothing.
        is_known_undone: Whether it is known that nothing was done: no attempt reached a server, or it took none.
    """

    default_code = "unavailable"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        idempotency_key: str | None = None,
        is_known_undone: bool = False,
    ) -> None:
        super().__init__(message, code=code, status=status)
        self.idempotency_key = idempotency_key
        self.is_known_undone = is_known_undone


class ServerFault(LicetClientError):  # As above.
    """The server failed, or what answered is no Licet server. Its operator should look."""

    default_code = "server-fault"


class StillRunning(LicetClientError):  # As above.
    """An operation did not end in the time given to wait for it; it goes on. Wait again."""

    default_code = "still-running"


class Denied(LicetClientError):  # As above.
    """Raised by ``Answer.require`` alone: the caller asked to be stopped by a denial.

    Attributes:
        answer: The denial.
    """

    default_code = "denied"

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.sentence(), code="denied", status=403)
        self.answer = answer


class OperationFailed(LicetClientError):  # As above.
    """Raised by ``Operation.require`` alone: the operation ended, and not as done.

    Attributes:
        operation: The operation.
    """

    default_code = "operation-failed"

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation.sentence(), code=operation.error_code or self.default_code)
        self.operation = operation


@dataclass(frozen=True, slots=True)
class DecidingPolicy:
    """A policy that determined a decision.

    Attributes:
        id: Its stable id.
        title: What it says, in one line.
        advice: What to do about it.
        requires: Facts that would satisfy it, such as ``approval:model-risk``.
        severity: How grave a breach would be.
        control: Clause of a framework that it enforces.
    """

    id: str
    title: str = ""
    advice: str = ""
    requires: tuple[str, ...] = ()
    severity: str = ""
    control: str = ""

    @classmethod
    def from_json(cls, value: Any) -> DecidingPolicy:
        """Read one from an answer."""
        if isinstance(value, str):
            return cls(value)
        required = value.get("requires") or ()
        requires = tuple(word for word in required.split(",") if word) if isinstance(required, str) else tuple(required)
        return cls(
            id=str(value.get("id", "")),
            title=str(value.get("title") or ""),
            advice=str(value.get("advice") or ""),
            requires=tuple(word.strip() for word in requires),
            severity=str(value.get("severity") or ""),
            control=str(value.get("control") or ""),
        )


FINAL_STATES = frozenset({"done", "failed", "refused"})


@dataclass(frozen=True, slots=True)
class Operation:
    """Accepted work.

    Attributes:
        id: Its identifier.
        tenant: Whose it is.
        state: ``accepted``, ``running``, ``done``, ``failed`` or ``refused``.
        action: What was asked for.
        resource: On what.
        attempt: 1 for the first; each resumption is one more.
        decision: The decision under which it runs.
        progress: What it last reported.
        result: What came of it, once done.
        error: Code and message, if it failed or was refused.
        created_at_ms: When it was accepted.
        updated_at_ms: When it last changed.
    """

    id: str
    tenant: str
    state: str
    action: str = ""
    resource: str = ""
    attempt: int = 0
    decision: str = ""
    progress: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    created_at_ms: int = 0
    updated_at_ms: int = 0

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Operation:
        """Read one from an answer."""
        decision = value.get("decision")
        return cls(
            id=str(value["id"]),
            tenant=str(value["tenant"]),
            state=str(value["state"]),
            action=str(value.get("action") or ""),
            resource=str(value.get("resource") or ""),
            attempt=int(value.get("attempt") or 0),
            decision=str(decision.get("id", "") if isinstance(decision, dict) else decision or ""),
            progress=dict(value.get("progress") or {}),
            result=dict(value.get("result") or {}),
            error=value.get("error"),
            created_at_ms=int(value.get("created_at_ms") or 0),
            updated_at_ms=int(value.get("updated_at_ms") or 0),
        )

    def to_json(self) -> dict[str, Any]:
        """The operation as JSON."""
        return {
            "id": self.id,
            "tenant": self.tenant,
            "action": self.action,
            "resource": self.resource,
            "state": self.state,
            "attempt": self.attempt,
            "decision": self.decision,
            "progress": dict(self.progress),
            "result": dict(self.result),
            "error": None if self.error is None else dict(self.error),
            "created_at_ms": self.created_at_ms,
            "updated_at_ms": self.updated_at_ms,
        }

    @property
    def ref(self) -> str:
        """``tenant/id``, by which it is named."""
        return f"{self.tenant}/{self.id}"

    @property
    def is_final(self) -> bool:
        """Whether it has ended."""
        return self.state in FINAL_STATES

    @property
    def is_done(self) -> bool:
        """Whether it ended as it was meant to."""
        return self.state == "done"

    @property
    def error_code(self) -> str:
        """The stable code of its error, or nothing."""
        return str((self.error or {}).get("code") or "")

    def sentence(self) -> str:
        """How it stands, in words."""
        what = f"operation {self.ref}" + (f" ({self.action} {self.resource})" if self.action else "")
        why = str((self.error or {}).get("message") or "")
        return f"{what} is {self.state}" + (f": {why}" if why else "")

    def require(self) -> Operation:
        """Give the operation back if it is done.

        Raises:
            OperationFailed: It is in any other state.
        """
        if not self.is_done:
            raise OperationFailed(self)
        return self


@dataclass(frozen=True, slots=True)
class Answer:
    """What policy said to a question, and what came of it.

    Attributes:
        action: What was asked for.
        resource: On what.
        decision_id: Of the decision in the log.
        allowed: Whether it is permitted.
        policies: Those that determined it, as far as the asker may read policy.
        errors: Policies that could not be evaluated; an error means no.
        observed: Policies in observe mode that would have forbidden it.
        conflict: Of a question alone: why what is permitted could not be done as things stand, as code and detail; None if it could.
        result: What was answered at once.
        operation: The accepted work, if there is any.
        is_explained: Whether the server named the deciding policies at all; it does so to who may read them.
    """

    action: str
    resource: str
    decision_id: str
    allowed: bool
    policies: tuple[DecidingPolicy, ...] = ()
    errors: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    conflict: Mapping[str, str] | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    operation: Operation | None = None
    is_explained: bool = False

    @classmethod
    def from_json(cls, action: str, resource: str, body: Mapping[str, Any]) -> Answer:
        """Read one from the body of an answer."""
        decision: Mapping[str, Any] = body["decision"]
        operation, conflict = body.get("operation"), body.get("conflict")
        return cls(
            action=action,
            resource=resource,
            decision_id=str(decision["id"]),
            allowed=decision["decision"] == "allow",
            policies=tuple(DecidingPolicy.from_json(p) for p in decision.get("policies") or ()),
            errors=tuple(e if isinstance(e, str) else str(e.get("id", e)) for e in decision.get("errors") or ()),
            observed=tuple(str(o) for o in decision.get("observed") or ()),
            conflict=None if conflict is None else {name: str(conflict[name]) for name in ("code", "detail")},
            result=dict(body.get("result") or {}),
            operation=None if operation is None else Operation.from_json(operation),
            is_explained="policies" in decision,
        )

    def to_json(self) -> dict[str, Any]:
        """The answer as JSON."""
        return {
            "action": self.action,
            "resource": self.resource,
            "allowed": self.allowed,
            "decision": {
                "id": self.decision_id,
                "decision": "allow" if self.allowed else "deny",
                "policies": [
                    {
                        "id": p.id,
                        "title": p.title,
                        "advice": p.advice,
                        "requires": list(p.requires),
                        "severity": p.severity,
                        "control": p.control,
                    }
                    for p in self.policies
                ],
                "errors": list(self.errors),
                "observed": list(self.observed),
            },
            "conflict": None if self.conflict is None else dict(self.conflict),
            "result": dict(self.result),
            "operation": None if self.operation is None else self.operation.to_json(),
        }

    @property
    def requires(self) -> tuple[str, ...]:
        """Every fact that the deciding policies say would satisfy them, each once, in their order."""
        return tuple(dict.fromkeys(word for policy in self.policies for word in policy.requires))

    @property
    def missing_approvals(self) -> tuple[str, ...]:
        """Tracks whose approval is missing."""
        if self.allowed:
            return ()
        return tuple(word.removeprefix(APPROVAL) for word in self.requires if word.startswith(APPROVAL))

    def sentence(self) -> str:
        """The answer in words."""
        word = "allowed" if self.allowed else "denied"
        why = "" if self.allowed else "".join(f"; {p.id}: {p.title or p.advice}" for p in self.policies)
        return f"{self.action} on {self.resource} is {word} (decision {self.decision_id}){why}"

    def require(self) -> Answer:
        """Give the answer back if it is an allow.

        Raises:
            Denied: It is not.
        """
        if not self.allowed:
            raise Denied(self)
        return self


@dataclass(frozen=True, slots=True)
class Upload:
    """Bytes that the server holds for a short time, to be used by a verb.

    Attributes:
        id: Identifier, to be named in the verb's parameters.
        digest_hex: SHA-256 of the bytes, equal to that of the file that was sent.
        size_bytes: How many they are.
    """

    id: str
    digest_hex: str
    size_bytes: int

    def to_parameters(self) -> dict[str, Any]:
        """As the parameters of a verb name it."""
        return {"upload": self.id, "digest_hex": self.digest_hex, "size_bytes": self.size_bytes}


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a decision fell as it did.

    Attributes:
        decision: What of the decision's record says which it is: id, action, resource, principal, time.
        explanation: The deciding policies' conjuncts with their values, or the nearest permits.
        path: The least set of obtainable facts that would permit it, or that there is none.
        now: What the policies in force would decide on it now, on the facts of now; empty if that is not told.
    """

    decision: Mapping[str, Any]
    explanation: Mapping[str, Any]
    path: Mapping[str, Any]
    now: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_approval_pending(self) -> bool:
        """Whether approvals, and nothing else, would turn the denial into a permission."""
        steps = self.path.get("steps") or ()
        return bool(self.path.get("possible") and steps) and all(
            str(step.get("name", "")).startswith(APPROVAL) for step in steps
        )

    def to_json(self) -> dict[str, Any]:
        """The explanation as JSON."""
        return {
            "decision": dict(self.decision),
            "explanation": dict(self.explanation),
            "path": dict(self.path),
            "now": dict(self.now),
        }


@dataclass(frozen=True, slots=True)
class LogHead:
    """The head of a tenant's log.

    Attributes:
        origin: Name of the log.
        size: Number of entries.
        root_hex: Root of the tree.
        checkpoint: Signed note; verify it against a trust root of your own.
    """

    origin: str
    size: int
    root_hex: str
    checkpoint: str


@dataclass(frozen=True, slots=True)
class Determined:
    """Decisions that the same policies determined.

    Attributes:
        allowed: How they fell.
        policies: Ids of the policies that determined them.
        observed: Ids of the observed policies that would have refused them.
        count: How many there were.
    """

    allowed: bool
    policies: frozenset[str]
    observed: frozenset[str]
    count: int


@dataclass(frozen=True, slots=True)
class Enforced:
    """How often which policies determined a decision, in a part of a log.

    Attributes:
        groups: By the policies that did.
        decisions: How many decisions were looked at.
        unread: Of how many of them the record was erased.
        own: Whether only the asker's own were looked at.
        next: Where the part after this one begins; None for the last.
    """

    groups: tuple[Determined, ...]
    decisions: int
    unread: int
    own: bool
    next: int | None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Enforced:
        """Read the server's answer."""
        groups = tuple(
            Determined(
                allowed=group["decision"] == "allow",
                policies=frozenset(map(str, group["policies"])),
                observed=frozenset(map(str, group["observed"])),
                count=int(group["count"]),
            )
            for group in body["groups"]
        )
        after = body["next"]
        if after is not None and not isinstance(after, int):
            raise TypeError("next is no index")
        return cls(groups, int(body["decisions"]), int(body["unread"]), bool(body["own"]), after)


@dataclass(frozen=True, slots=True)
class ExchangedToken:
    """A token that an ID token was exchanged for.

    Attributes:
        token: Kept out of every text of this object.
        expires_in_s: How long it counts.
    """

    token: str = field(repr=False)
    expires_in_s: int
