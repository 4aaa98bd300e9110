"""The policies in force for a tenant, composed into one immutable value with one digest.

Rules kept:

- Guardrails and role grants are in every bundle, enforced; no choice removes or weakens them.
- The same choices give the same bytes: the order in which packs and policies were given does not matter.
- A tenant's own policies are validated strictly against the schema, bear ids of their own, and cannot take an id that
  belongs to the platform.
- Safety valves are decided by guardrails and roles alone; so is what a deactivated principal asks, or anybody of a
  suspended tenant, whose own policies must cost nobody anything. The bundle names these actions and these states, so that
  a replay, years later, leaves out the same policies.
- A tenant's own policies are bounded in number, size and depth before Cedar reads any of them.
- A bundle that extends the schema carries the merged schema; one that does not has the same bytes as ever.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from operator import attrgetter
from typing import Any, Final

import cedarpy

from licet_attestations import canonical
from licet_policies.bounds import verify_text
from licet_policies.errors import PackError, PolicySourceError, SchemaExtensionError
from licet_policies.extension import Extension, merge
from licet_policies.packs import Mode, PackChoice, pack, pack_names
from licet_policies.schema import load_schema
from licet_policies.source import Policy, parse_policies

__all__ = [
    "PLATFORM_SOURCES",
    "bundle_digest",
    "bundle_digest_hex",
    "compose",
    "guardrails",
    "policies_for",
    "roles",
    "safety_valve_actions",
]

PLATFORM_SOURCES: Final = frozenset({"guardrail", "role"})
MAX_OWN_CHARS: Final = 256 * 1024
"""All own policies of a tenant together: what one decision can cost is in proportion to it."""
MAX_OWN_STEPS: Final = 8_000
"""Brackets, operators, accessors and conditions in all of them: Cedar takes some microseconds to read each."""
MAX_OWN_POLICIES: Final = 500
"""Own policies of a tenant; each costs some milliseconds to validate."""
_MAX_FINDINGS: Final = 20
_SAFETY_VALVES: Final = frozenset(
    {
        *("dataset.hold", "endpoint.roll-back", "evidence.export", "evidence.hold", "model.hold"),
        *("model.roll-back", "policy.roll-back", "tenant.suspend"),
    }
)
_PLATFORM_ALONE: Final = ("principal-inactive", "tenant-suspended")
"""States of the asker, told by its facts, in which the platform's policies alone decide."""


def safety_valve_actions() -> frozenset[str]:
    """Give the actions that platform policies alone decide: a broken tenant policy cannot block them."""
    return _SAFETY_VALVES


def reserved_id_words() -> frozenset[str]:
    """Give the first words of ids that belong to the platform."""
    # A pack that is not enabled today may be tomorrow: its ids are kept free.
    return frozenset({"guardrail", "role", "pack", *pack_names()})


@cache
def guardrails() -> tuple[Policy, ...]:
    """Give the platform's guardrails, sorted by id."""
    return _folder("guardrails", "guardrail")


@cache
def roles() -> tuple[Policy, ...]:
    """Give the platform's role grants, sorted by id."""
    return _folder("roles", "role")


def compose(packs: Sequence[PackChoice] = (), own: str = "", extension: Extension | None = None) -> dict[str, Any]:
    """Compose the policies in force for a tenant.

    Args:
        packs: The packs it enables, each at most once.
        own: Its own policies in Cedar's syntax; one annotated ``@mode("observe")`` is watched and decides nothing.
        extension: What it adds to the schema. A bundle without has the bytes that it had before there were any.

    Returns:
        The bundle: canonical JSON can be made of it. Keys: ``v``, ``schema``, ``safety_valves``, ``platform_alone``,
        ``packs`` and ``policies``, each of these ``{"id", "source", "mode", "text"}``.

    Raises:
        PackError: An unknown pack, a pack chosen twice, an unknown mode or a refused parameter.
        PolicySourceError: An own policy that does not parse or validate, or whose id is taken or reserved, or whose mode is
            unknown.
        SchemaExtensionError: Beside the extension the platform's own policies would not hold.
    """
    schema = load_schema() if extension is None else _extended(extension)
    chosen = sorted(packs, key=lambda choice: choice.name)
    entries = [_entry(policy, "enforce") for policy in (*guardrails(), *roles())]
    applied: list[dict[str, Any]] = []
    for choice in chosen:
        shipped = pack(choice.name)
        if applied and applied[-1]["name"] == choice.name:
            raise PackError(f"pack {choice.name}: chosen twice; choose it once")
        if choice.mode not in ("enforce", "observe"):
            raise PackError(f"pack {choice.name}: mode is enforce or observe, not {choice.mode!r:.60}")
        parameters = shipped.resolve(choice.parameters)
        entries += [_entry(policy, choice.mode) for policy in _by_id(shipped.policies(parameters))]
        applied.append(
            {"name": shipped.name, "version": shipped.version, "mode": choice.mode, "parameters": parameters}
        )
    entries += [_entry(policy, _mode_of(policy)) for policy in _own(own, schema)]
    return {
        "v": 1,
        "schema": schema,
        "safety_valves": sorted(_SAFETY_VALVES),
        "platform_alone": list(_PLATFORM_ALONE),
        "packs": applied,
        "policies": entries,
    }


def _extended(extension: Extension) -> dict[str, Any]:
    """The schema with an extension, against which the platform's own policies are valid still."""
    schema = merge(extension)
    result = cedarpy.validate_policies("\n".join(policy.text for policy in (*guardrails(), *roles())), schema)
    if not result.validation_passed:
        said = "; ".join(str(error)[:500] for error in result.errors[:_MAX_FINDINGS])
        raise SchemaExtensionError(f"schema extension: the platform's policies are not valid beside it: {said}")
    return schema


def policies_for(bundle: Mapping[str, Any], action: str, mode: Mode = "enforce") -> list[dict[str, Any]]:
    """Give the policies of ``bundle`` that may have a say on ``action``.

    Args:
        bundle: As ``compose`` returned it.
        action: Id of the action asked for.
        mode: ``enforce`` for those that decide, ``observe`` for those that are only recorded.

    Returns:
        The platform's alone where ``action`` is a safety valve, else all of that mode.
    """
    valve = action in bundle["safety_valves"]
    return [
        policy
        for policy in bundle["policies"]
        if policy["mode"] == mode and (not valve or policy["source"] in PLATFORM_SOURCES)
    ]


def bundle_digest(bundle: Mapping[str, Any]) -> bytes:
    """Give the SHA-256 of the bundle's canonical JSON, 32 bytes."""
    return canonical.digest(dict(bundle))


def bundle_digest_hex(bundle: Mapping[str, Any]) -> str:
    """Give ``bundle_digest`` as 64 hex characters: the name under which records cite the bundle."""
    return bundle_digest(bundle).hex()


def _folder(name: str, source: str) -> tuple[Policy, ...]:
    folder = resources.files("licet_policies").joinpath(name)
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".cedar")), key=lambda file: file.name)
    return _by_id(policy for file in files for policy in parse_policies(file.read_text("utf-8"), source))


def _by_id(policies: Iterable[Policy]) -> tuple[Policy, ...]:
    return tuple(sorted(policies, key=attrgetter("id")))


def _entry(policy: Policy, mode: Mode) -> dict[str, Any]:
    return {"id": policy.id, "source": policy.source, "mode": mode, "text": policy.text}


def _mode_of(policy: Policy) -> Mode:
    """In which mode a tenant has a policy of its own stand. Of the platform's and a pack's, no annotation is asked."""
    mode = policy.annotations.get("mode", "enforce")
    if mode == "observe":
        return "observe"
    if mode != "enforce":
        raise PolicySourceError(f"own policy {policy.id}: @mode is enforce or observe, not {mode!r:.60}")
    return "enforce"


def _own(text: str, schema: Mapping[str, Any]) -> tuple[Policy, ...]:
    if len(text) > MAX_OWN_CHARS:
        raise PolicySourceError(f"own policies: at most {MAX_OWN_CHARS} characters, found {len(text)}")
    policies = _by_id(parse_policies(text, "tenant"))
    steps = sum(verify_text(policy.text, f"own policy {policy.id}") for policy in policies)
    if steps > MAX_OWN_STEPS:
        raise PolicySourceError(
            f"own policies: at most {MAX_OWN_STEPS} brackets, operators, accessors and conditions in all, found {steps}"
        )
    reserved = reserved_id_words()
    for before, policy in zip((None, *policies), policies, strict=False):
        if policy.id.split(".", 1)[0] in reserved:
            raise PolicySourceError(f"own policy {policy.id}: ids that begin so belong to the platform; choose another")
        if before is not None and before.id == policy.id:
            raise PolicySourceError(f"own policy {policy.id}: the id occurs twice; give each policy its own")
    if policies:
        result = cedarpy.validate_policies("\n".join(policy.text for policy in policies), dict(schema))
        if not result.validation_passed:
            said = "; ".join(str(error)[:500] for error in result.errors[:_MAX_FINDINGS])
            raise PolicySourceError(
                f"own policies: not valid against the schema, {len(result.errors)} finding(s): {said}"
            )
    return policies
