"""in-toto Statements, version 1.

Rules kept here:

- A statement is canonical JSON, so figures in it are integers or strings.
- A statement has at least one subject, and every subject a SHA-256 digest.

Source: github.com/in-toto/attestation spec/v1/statement.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from licet_attestations import canonical
from licet_attestations.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"

SLSA_PROVENANCE = "https://slsa.dev/provenance/v1"
SLSA_VSA = "https://slsa.dev/verification_summary/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
DECISION = "urn:licet:decision:v1"
APPROVAL = "urn:licet:approval:v1"
WARRANT = "urn:licet:warrant:v1"
ISOLATION = "urn:licet:isolation:v1"
ISOLATION_PAIR = "urn:licet:isolation:v2"
EXPORT = "urn:licet:export:v2"
DEPLOYMENT = "urn:licet:deployment:v1"
POLICY = "urn:licet:policy:v1"
TRAFFIC = "urn:licet:traffic:v1"
DELETION = "urn:licet:deletion:v1"
KEY_ROTATION = "urn:licet:key-rotation:v1"
KEY_COMPROMISE = "urn:licet:key-compromise:v1"
CYCLONEDX = "https://cyclonedx.org/bom"

PREDICATE_TYPES = frozenset(
    {
        SLSA_PROVENANCE,
        SLSA_VSA,
        TEST_RESULT,
        DECISION,
        APPROVAL,
        WARRANT,
        ISOLATION,
        ISOLATION_PAIR,
        EXPORT,
        DEPLOYMENT,
        POLICY,
        TRAFFIC,
        DELETION,
        KEY_ROTATION,
        KEY_COMPROMISE,
        CYCLONEDX,
    },
)
"""Every predicate type that Licet signs."""

_HEX64 = re.compile(r"[0-9a-f]{64}")
_FIELDS = frozenset({"_type", "subject", "predicateType", "predicate"})


def is_sha256_hex(value: object) -> bool:
    """Whether ``value`` is a SHA-256 digest as 64 lower-case hex characters."""
    return isinstance(value, str) and _HEX64.fullmatch(value) is not None


TENANT_PROPERTY = "licet:tenant"
"""Name of the property by which a bill of materials says whose it is."""


def tenant_of(predicate: Mapping[str, Any]) -> str | None:
    """Whose a predicate says it is, or None; formats that are not ours have places of their own for such things.

    SLSA has its extensions named by who extends (spec v1.0, "Extension fields"), CycloneDX has properties.
    """
    match predicate:
        case (
            {"tenant": str(tenant)}
            | {"licet_tenant": str(tenant)}
            | {"buildDefinition": {"externalParameters": {"tenant": str(tenant)}}}
        ):
            return tenant
        case {"bomFormat": "CycloneDX", "metadata": {"properties": list(properties)}}:
            named = [p.get("value") for p in properties if isinstance(p, dict) and p.get("name") == TENANT_PROPERTY]
            # Named twice it would be whoever's the reader looks at first.
            return named[0] if len(named) == 1 and isinstance(named[0], str) else None
    return None


@dataclass(frozen=True, slots=True)
class Subject:
    """What a statement is about.

    Attributes:
        name: Its name, unique within the statement.
        sha256_hex: SHA-256 of its bytes.
    """

    name: str
    sha256_hex: str


@dataclass(frozen=True, slots=True)
class Statement:
    """A claim of ``predicate_type`` about subjects.

    Attributes:
        subject: At least one.
        predicate_type: URI that names the predicate's format.
        predicate: The claim: canonical-JSON values only.
    """

    subject: tuple[Subject, ...]
    predicate_type: str
    predicate: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """The statement as canonical JSON.

        Raises:
            FormatError: No subject, a bad digest, or a value without canonical JSON.
        """
        _check(self.subject, self.predicate_type)
        return canonical.dumps(
            {
                "_type": STATEMENT_TYPE,
                "subject": [{"name": s.name, "digest": {"sha256": s.sha256_hex}} for s in self.subject],
                "predicateType": self.predicate_type,
                "predicate": dict(self.predicate),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Statement:
        """Read a statement that ``to_bytes`` wrote.

        Raises:
            FormatError: Not a statement of this version, or not canonical.
        """
        value = canonical.loads(data, canonical=True)
        if not isinstance(value, dict) or value.get("_type") != STATEMENT_TYPE:
            raise FormatError(f"not an in-toto statement of type {STATEMENT_TYPE}")
        subject, predicate = value.get("subject"), value.get("predicate")
        if set(value) != _FIELDS or not isinstance(subject, list) or not isinstance(predicate, dict):
            raise FormatError("an in-toto statement has exactly _type, subject, predicateType and predicate")
        subjects = tuple(_subject(s) for s in subject)
        _check(subjects, value["predicateType"])
        return cls(subjects, value["predicateType"], predicate)


def _subject(value: Any) -> Subject:
    if not isinstance(value, dict) or set(value) != {"name", "digest"} or not isinstance(value["digest"], dict):
        raise FormatError("a subject of a statement has exactly a name and a digest")
    if set(value["digest"]) != {"sha256"} or not isinstance(value["name"], str):
        raise FormatError("a subject of a statement has a text name and a sha256 digest")
    return Subject(value["name"], value["digest"]["sha256"])


def _check(subjects: Sequence[Subject], predicate_type: object) -> None:
    if not isinstance(predicate_type, str) or not predicate_type:
        raise FormatError("a statement needs a predicateType")
    if not subjects:
        raise FormatError("a statement needs at least one subject")
    if len({s.name for s in subjects}) != len(subjects):
        raise FormatError("two subjects of a statement have the same name")
    for subject in subjects:
        if not is_sha256_hex(subject.sha256_hex):
            raise FormatError(f"subject {subject.name!r} has no sha256 digest of 64 lower-case hex characters")
