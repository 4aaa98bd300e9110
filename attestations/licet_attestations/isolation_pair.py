"""The isolation answer for one pair: whether a tenant ever stood in another's log, proved without looking through it.

Rules kept here:

- What is proved is proved by the statement itself: the pair's proof under the root that the directory has of the owner's log, and the
  directory's checkpoint. Nobody, the signer neither, signs or accepts one whose proofs do not lead there.
- Whether the actor exists is no part of it: the answer on a tenant that does not exist has the form of that on one that never came.
- Every part says of itself whether it proves the absence of records, supports the absence of access, or is not there. What is told by the
  service without a proof in the statement is called so.
- Its words follow from its figures: there is one text for them.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from licet_attestations import canonical, directory, dsse
from licet_attestations.errors import FormatError, LicetAttestationError, VerificationError
from licet_attestations.leaf import is_tenant
from licet_attestations.pairs import Pair, verify_pair
from licet_attestations.sparsemap import MapProof
from licet_attestations.statement import ISOLATION_PAIR, TEST_RESULT, Statement, Subject, is_sha256_hex

if TYPE_CHECKING:
    from collections.abc import Mapping

    from licet_attestations.directory import Opened
    from licet_attestations.trustroot import TrustRoot

MAX_BYTES: Final = 1024 * 1024
ISOLATION_INVARIANT: Final = "invariant.isolation.resources"
"""The property that nobody is ever allowed anything on another tenant's resource."""
BUNDLE_SUBJECT: Final = "policy-bundle"
"""Name of the subject, in the attestation of an examination of policies, that they are."""

LIMITS: Final[tuple[str, ...]] = (
    "Operators with root on the machine, or with the service's user, can read memory, keys and files. No log of the service can exclude it.",
    "People with accounts in both tenants, and people who tell each other, carry what they know. Each account stands in its own log only.",
    "What was copied before, or beside the service, leaves no entry here.",
    "Headers tell that and when an actor came, not what was decided. What was decided is in the records, which may be erased.",
    "A compromised service could have done something without an entry. Reconciliation and probes make that less likely; they do not exclude it.",
)
_FIELDS: Final = frozenset(
    {
        *("v", "tenant", "actor", "owner", "answer", "sentence", "pair", "pairs_proof", "directory", "outcomes"),
        *("policies", "reconciliation", "probes", "sections", "does_not_prove"),
    }
)
_OUTCOMES: Final = frozenset({"allow", "deny", "erased", "other", "not_counted"})


@dataclass(frozen=True, slots=True)
class PairAnswer:
    """An answer whose proofs were verified.

    Attributes:
        predicate: The statement's.
        opened: The owner's log, as the directory has it.
        pair: The actor's entries there; None if there are none.
    """

    predicate: Mapping[str, Any]
    opened: Opened
    pair: Pair | None

    @property
    def is_absent(self) -> bool:
        """Whether the owner's log has no entry of the actor."""
        return self.pair is None


def pair_predicate(
    *,
    actor: str,
    owner: str,
    pair: Pair | None,
    proof: MapProof,
    opening: Mapping[str, Any],
    outcomes: Mapping[str, int] | None = None,
    policies: Mapping[str, Any] | None = None,
    reconciliation: Mapping[str, Any] | None = None,
    probes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The predicate of type ``urn:licet:isolation:v2``.

    Args:
        actor: Who is asked about.
        owner: Whose log it is.
        pair: The actor's entries there, if there are any.
        proof: That it is so.
        opening: Of the directory, for the owner's log.
        outcomes: What the records of these entries say was decided, where they were looked at.
        policies: By the digest of each bundle that was in force, the digest of the newest attestation of whether isolation holds of it, if that was
            proved, or no text.
        reconciliation: ``accesses`` and ``unmatched`` of the newest reconciliation, ``at_ms`` and ``attestation`` of it.
        probes: ``tried`` and ``allowed`` of the newest probes, ``at_ms`` and ``attestation`` of them.
    """
    told: dict[str, Any] = {
        "v": 2,
        "tenant": owner,
        "actor": actor,
        "owner": owner,
        "answer": "no-records" if pair is None else "records",
        "pair": None if pair is None else pair.to_dict(),
        "pairs_proof": proof.to_dict(),
        "directory": dict(opening),
        "outcomes": None if outcomes is None else dict(outcomes),
        "policies": None if policies is None else dict(policies),
        "reconciliation": None if reconciliation is None else dict(reconciliation),
        "probes": None if probes is None else dict(probes),
        "does_not_prove": list(LIMITS),
    }
    return told | {"sentence": _sentence(told), "sections": _sections(told)}


def pair_statement(predicate: Mapping[str, Any], origin: str) -> Statement:
    """The statement, about the owner's log as the directory has it."""
    return Statement((Subject(origin, predicate["directory"]["root"]),), ISOLATION_PAIR, predicate)


def verify_predicate(predicate: Mapping[str, Any], trust: TrustRoot) -> PairAnswer:
    """Verify the proofs of an answer, and that it says what follows from them.

    Raises:
        VerificationError: They do not show it, or it says something else.
    """
    try:
        if set(predicate) != _FIELDS or predicate["v"] != 2:  # noqa: PLR2004  # The predicate's version.
            raise FormatError("not an isolation answer of version 2")
        actor, owner = predicate["actor"], predicate["owner"]
        if not is_tenant(actor) or not is_tenant(owner) or actor == owner or predicate["tenant"] != owner:
            raise FormatError("an isolation answer is about two tenants, and the owner's")
        _check_told(predicate)
        pair = None if predicate["pair"] is None else Pair.from_dict(predicate["pair"])
        opened = directory.verify_opening(predicate["directory"], trust, owner)
        verify_pair(opened.state.pairs_root, actor, owner, pair, MapProof.from_dict(predicate["pairs_proof"]))
        again = pair_predicate(
            actor=actor,
            owner=owner,
            pair=pair,
            proof=MapProof.from_dict(predicate["pairs_proof"]),
            opening=predicate["directory"],
            **{name: predicate[name] for name in ("outcomes", "policies", "reconciliation", "probes")},
        )
    except FormatError as error:
        raise VerificationError(f"the isolation answer has another form: {error}") from error
    if canonical.dumps(again) != canonical.dumps(dict(predicate)):
        raise VerificationError("the isolation answer says something else than its proofs and figures")
    return PairAnswer(predicate, opened, pair)


def verify_statement(data: bytes, trust: TrustRoot) -> PairAnswer:
    """Verify a signed isolation answer of one pair, offline.

    Args:
        data: The DSSE envelope as JSON; nothing in it is trusted.
        trust: Pinned keys.

    Raises:
        VerificationError: It is none, no pinned key signed it, or its proofs do not show what it says.
    """
    try:
        envelope = dsse.Envelope.from_json(data)
        claim = Statement.from_bytes(envelope.payload)
        if claim.predicate_type != ISOLATION_PAIR:
            raise FormatError(f"it is a statement of type {claim.predicate_type!r}")
        answer = verify_predicate(claim.predicate, trust)
        dsse.verify_envelope(envelope, trust.keys_since("attestation", answer.opened.time_ms))
    except VerificationError:
        raise
    except LicetAttestationError as error:
        raise VerificationError(f"not an isolation answer: {error}") from error
    expected = Subject(trust.origin(answer.opened.state.tenant), answer.opened.state.root.hex())
    if claim.subject != (expected,):
        raise VerificationError("the isolation answer is about another log than its proofs")
    return answer


def _check_told(predicate: Mapping[str, Any]) -> None:
    """Check the form of what is told without a proof: bounded figures and digests, no text."""
    members = {
        "outcomes": _OUTCOMES,
        "reconciliation": frozenset({"accesses", "unmatched", "at_ms", "attestation"}),
        "probes": frozenset({"tried", "allowed", "at_ms", "attestation"}),
    }
    policies = predicate["policies"]
    if policies is not None and not (
        isinstance(policies, dict)
        and all(is_sha256_hex(key) and (value == "" or is_sha256_hex(value)) for key, value in policies.items())
    ):
        raise FormatError("policies has digests of bundles and of attestations")
    for name, allowed in members.items():
        given = predicate[name]
        if given is None:
            continue
        if not isinstance(given, dict) or set(given) - allowed or (name != "outcomes" and set(given) != allowed):
            raise FormatError(f"{name} has exactly {', '.join(sorted(allowed))}")
        for key, value in given.items():
            if not (is_sha256_hex(value) if key == "attestation" else type(value) is int and value >= 0):
                raise FormatError(f"{name} has counts from 0, times and digests")


# --- In words -----------------------------------------------------------------------------------------------------------


def _sentence(told: Mapping[str, Any]) -> str:
    actor, owner, size = told["actor"], told["owner"], told["directory"]["size"]
    pair = told["pair"]
    if pair is None:
        return f"The log of {owner!r} has no entry of {actor!r} among its first {size}."
    return (
        f"The log of {owner!r} has {pair['count']} entries of {actor!r} among its first {size}, "
        f"from entry {pair['first']} to entry {pair['last']}."
    )


def _sections(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_dual_entry(told), _map(told), _policies(told), _reconciliation(told), _probes(told)]


def _section(letter: str, title: str, status: str, of: str, *, shows: str, not_shown: str) -> dict[str, Any]:
    return {"part": letter, "title": title, "status": status, "of": of, "shows": shows, "does_not_show": not_shown}


def _dual_entry(told: Mapping[str, Any]) -> dict[str, Any]:
    outcomes = told["outcomes"]
    counted = ""
    if outcomes:
        counted = " By their records: " + ", ".join(f"{n} {word}" for word, n in sorted(outcomes.items())) + "."
    return _section(
        "a",
        "Dual entry",
        "supported",
        "records",
        shows="What crosses tenants is written to the owner's log in the transaction of the decision, or nothing is decided."
        + counted,
        not_shown="That the service kept to it each time: its tests show it, this statement does not.",
    )


def _map(told: Mapping[str, Any]) -> dict[str, Any]:
    what = "no entry of this actor" if told["pair"] is None else "exactly these entries of this actor"
    return _section(
        "b",
        "Map of pairs",
        "proven",
        "records",
        shows=f"Among the first {told['directory']['size']} entries there is {what}, by a proof under the root that the directory commits to.",
        not_shown="That the root is right: whoever has the leaves (an evidence archive) makes it again. Later entries.",
    )


def _policies(told: Mapping[str, Any]) -> dict[str, Any]:
    found = told["policies"]
    status, shows = "not-available", "The policies in force were not looked at."
    if found is not None:
        proved = sum(1 for attestation in found.values() if attestation)
        status = "supported" if found and proved == len(found) else "not-proven-here"
        shows = (
            f"Of {len(found)} policy bundles in force in the owner's tenant over the window, {proved} have an attested proof "
            f"of {ISOLATION_INVARIANT}."
        )
    return _section(
        "c",
        "Policies",
        status,
        "access",
        shows=shows,
        not_shown="Other tenants' policies, which are theirs. The guardrail that forbids it is the platform's, and the same for all.",
    )


def _reconciliation(told: Mapping[str, Any]) -> dict[str, Any]:
    found = told["reconciliation"]
    status, shows = "not-available", "No reconciliation is attested."
    if found is not None:
        status = "supported" if not found["unmatched"] else "failed"
        shows = f"{found['accesses']} accesses to the owner's objects were matched with warrants; {found['unmatched']} had none."
    return _section(
        "d",
        "Reconciliation",
        status,
        "access",
        shows=shows,
        not_shown="Accesses that the store does not log, and what was read in memory.",
    )


def _probes(told: Mapping[str, Any]) -> dict[str, Any]:
    found = told["probes"]
    status, shows = "not-available", "No probes are attested."
    if found is not None:
        status = "supported" if found["tried"] and not found["allowed"] else "failed"
        shows = (
            f"{found['tried']} actions were tried across tenants on canary resources; {found['allowed']} were allowed."
        )
    return _section(
        "e",
        "Active probes",
        status,
        "access",
        shows=shows,
        not_shown="What was not tried, and other moments than that of the probe.",
    )


def report_lines(answer: PairAnswer) -> list[str]:
    """The answer for people, as lines of text."""
    told = answer.predicate
    lines = [
        str(told["sentence"]),
        f"Directory entry {answer.opened.index}, log root {answer.opened.state.root.hex()[:16]}.",
        "",
    ]
    for section in told["sections"]:
        lines.append(
            f"({section['part']}) {section['title']}: {section['status']}, of {section['of']}. {section['shows']}"
        )
        lines.append(f"    Does not show: {section['does_not_show']}")
    return [
        *lines,
        "",
        "What no log can exclude, and this does not prove:",
        *(f"  - {each}" for each in told["does_not_prove"]),
    ]


def report_html(answer: PairAnswer) -> str:
    """The answer for people, as a page that runs nothing and loads nothing."""
    told, text = answer.predicate, html.escape
    rows = "".join(
        f"<tr><td>{text(s['part'])}</td><td>{text(s['title'])}</td><td>{text(s['status'])}</td><td>{text(s['of'])}</td>"
        f"<td>{text(s['shows'])}</td><td>{text(s['does_not_show'])}</td></tr>"
        for s in told["sections"]
    )
    limits = "".join(f"<li>{text(each)}</li>" for each in told["does_not_prove"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<title>Isolation answer</title><style>body{font-family:sans-serif;max-width:70em;margin:2em auto}"
        "td,th{border:1px solid #999;padding:.4em;text-align:left;vertical-align:top}table{border-collapse:collapse}</style></head>"
        f"<body><h1>Isolation of {text(told['owner'])} from {text(told['actor'])}</h1><p>{text(told['sentence'])}</p>"
        f"<p>Directory entry {answer.opened.index}; log root <code>{text(answer.opened.state.root.hex())}</code>.</p>"
        "<table><tr><th></th><th>Part</th><th>Status</th><th>Of</th><th>What it shows</th><th>What it does not show</th></tr>"
        f"{rows}</table><h2>What no log can exclude, and this does not prove</h2><ul>{limits}</ul></body></html>\n"
    )


def examined_policies(claim: Statement) -> dict[str, bool]:
    """Of which policies an attestation says whether they allow nothing across tenants, by their SHA-256: proved, or refuted.

    Of several about the same policies the newest counts: what was proved by one version may be refuted by a later one.
    """
    proofs = claim.predicate.get("proofs")
    if claim.predicate_type != TEST_RESULT or not isinstance(proofs, dict):
        return {}
    outcome = proofs.get(ISOLATION_INVARIANT)
    if outcome not in ("proved", "refuted"):
        return {}
    return {subject.sha256_hex: outcome == "proved" for subject in claim.subject if subject.name == BUNDLE_SUBJECT}
