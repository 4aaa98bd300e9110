"""The policies in force, compiled: validated once, indexed, and parsed into sets as requests need them.

Rules kept here:

- A bundle is a value with a digest. What compiles is exactly what the digest names; nothing is read from elsewhere.
- A slice holds every policy whose scope can match the request and leaves out only such as cannot: a policy left out
  could neither hold nor err, since scopes never err. So decision, reasons and errors equal those of the whole set.
- In a slice the policies stand without their scopes, which all match, and without annotations, which Cedar does not
  evaluate: about an eighth of an evaluation is saved. The whole set keeps both, and the two are tested to be equal.
- Which scopes match is told by ``==``, ``is`` and ``in`` over the request's own ancestors, the way Cedar tells it. The
  hierarchy of actions is asked of Cedar itself, not read out of the schema a second time.
- Policies in observe mode are parsed into sets of their own: they cannot touch a decision.
- A safety valve is decided by the platform's policies alone, and so is what is asked in a state that the bundle names
  (by a deactivated principal, in a suspended tenant). The bundle names actions and states; the facts of the request say
  whether it is in one. So a replay leaves out what the decision left out.
- No text reaches Cedar's parser before it is within the bounds which that survives, wherever the bundle came from.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import cedarpy
from cedarpy import _internal

from licet_attestations import canonical
from licet_attestations.errors import FormatError
from licet_engine.decide.cache import BoundedCache
from licet_engine.decide.entities import EntityHandles, FactSet, UidKey
from licet_engine.decide.errors import BundleError
from licet_policies import PLATFORM_SOURCES
from licet_policies.bounds import verify_text, verify_tree
from licet_policies.errors import PolicySourceError

Effect = Literal["permit", "forbid"]
Mode = Literal["enforce", "observe"]
ScopeKey = tuple[str, ...]
"""One way in which a scope constrains principal, action or resource; equal where a request meets it."""

RESERVED_IDS = frozenset({"request", "facts", "engine"})
"""Stand among the ids of a decision's errors for what is no policy's fault."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}")
_SOURCE = re.compile(r"guardrail|role|tenant|pack:[a-z0-9][a-z0-9.-]{0,63}")
_POLICY_KEYS = frozenset({"id", "source", "mode", "text"})
_ANY: ScopeKey = ("any",)
_UNSCOPED = {"principal": {"op": "All"}, "action": {"op": "All"}, "resource": {"op": "All"}}
_INACTIVE, _SUSPENDED = "principal-inactive", "tenant-suspended"
_MAX_SLICES = 4096
# A parsed policy takes a few kilobytes, so all slices of a bundle together stay under some hundred megabytes.
_MAX_SLICED_POLICIES = 50_000


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """One policy of a bundle.

    Attributes:
        ordinal: Its place in the bundle.
        id: Its ``@id``: how decisions and records name it.
        source: ``guardrail``, ``role``, ``tenant`` or ``pack:<name>``.
        mode: ``enforce``, or ``observe`` if it only says what it would have done.
        effect: ``permit`` or ``forbid``.
        annotations: All of its annotations; one without a value has the empty text.
        ast: Cedar's JSON form. Not to be changed.
        fragment: ``"id":{...}``, ready to stand in the JSON form of a set.
        matched: The same without scope and annotations, for where the scope is known to match.
    """

    ordinal: int
    id: str
    source: str
    mode: Mode
    effect: Effect
    annotations: Mapping[str, str]
    ast: Mapping[str, Any]
    fragment: str
    matched: str

    @property
    def is_platform(self) -> bool:
        """Whether it is the platform's own: no tenant can remove it, and safety valves heed it."""
        return self.source in PLATFORM_SOURCES


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """Policies parsed for one kind of request.

    Attributes:
        policies: All of them, in the order of the bundle.
        enforced: The set that decides.
        observed: The set that is only watched, or None if there is none.
    """

    policies: tuple[Policy, ...]
    enforced: _internal.PolicySet
    observed: _internal.PolicySet | None


@dataclass(slots=True)
class _ActionIndex:
    """What one action needs to find its policies."""

    ancestor_keys: tuple[ScopeKey, ...]
    is_valve: bool
    principals: set[ScopeKey] = field(default_factory=set)
    resources: set[ScopeKey] = field(default_factory=set)


def policy_set(fragments: Iterable[str]) -> _internal.PolicySet:
    """Parse policies into one set in which each bears its own id."""
    members = ",".join(fragments)
    return _internal.PolicySet.from_json_str(f'{{"templates":{{}},"staticPolicies":{{{members}}},"templateLinks":[]}}')


def scope_keys(constraint: Mapping[str, Any]) -> tuple[ScopeKey, ...]:
    """The index keys of one scope constraint in Cedar's JSON form; a request meets it by any one of them."""
    op = constraint["op"]
    if op == "All":
        return (_ANY,)
    if op == "is":
        inside = constraint.get("in")
        if inside is None:
            return (("is", constraint["entity_type"]),)
        return (("is-in", constraint["entity_type"], inside["entity"]["type"], inside["entity"]["id"]),)
    if op not in ("==", "in"):
        raise BundleError(f"its scope uses {op!r}, which this engine does not know")
    entities = constraint["entities"] if "entities" in constraint else (constraint["entity"],)
    return tuple((op, entity["type"], entity["id"]) for entity in entities)


def request_keys(uid: UidKey, ancestors: Sequence[UidKey]) -> list[ScopeKey]:
    """Every index key that an entity with these ancestors (itself among them) meets."""
    kind = uid[0]
    keys: list[ScopeKey] = [_ANY, ("is", kind), ("==", *uid)]
    for ancestor in ancestors:
        keys.append(("in", *ancestor))
        keys.append(("is-in", kind, *ancestor))
    return keys


class CompiledBundle:
    """A bundle, ready to decide. Threads may share it; tenants must not: it holds caches.

    Attributes:
        digest_hex: SHA-256 of the bundle's canonical JSON: what records name.
        policies: All policies, in the order of the bundle.
        schema: Cedar's handle of the schema.
        entities: Parsed facts, remembered.
    """

    __slots__ = (
        "_actions",
        "_alone",
        "_ancestors",
        "_asked",
        "_slices",
        "_table",
        "_valves",
        "_whole",
        "digest_hex",
        "entities",
        "policies",
        "policies_by_id",
        "schema",
    )

    def __init__(
        self,
        digest_hex: str,
        schema: _internal.Schema,
        policies: Sequence[Policy],
        safety_valves: Iterable[str] = (),
        platform_alone: Iterable[str] = (),
    ) -> None:
        self.digest_hex = digest_hex
        self.schema = schema
        self.policies = tuple(policies)
        self.policies_by_id: Mapping[str, Policy] = {policy.id: policy for policy in policies}
        self.entities = EntityHandles(schema)
        self._valves = frozenset(safety_valves)
        self._alone = frozenset(platform_alone)
        self._ancestors = _action_ancestors(schema)
        self._actions: dict[UidKey, _ActionIndex] = {}
        self._table: dict[tuple[ScopeKey, ScopeKey, ScopeKey], list[Policy]] = defaultdict(list)
        for policy in self.policies:
            (principal,), (resource,) = scope_keys(policy.ast["principal"]), scope_keys(policy.ast["resource"])
            for action in set(scope_keys(policy.ast["action"])):
                self._table[action, principal, resource].append(policy)
        # The same slices twice: by what they depend on, and, to be found at once, by what was asked last.
        self._slices: BoundedCache[tuple[object, ...], Slice] = BoundedCache(
            max_entries=_MAX_SLICES, max_weight=_MAX_SLICED_POLICIES
        )
        self._asked: BoundedCache[tuple[object, ...], Slice] = BoundedCache(
            max_entries=_MAX_SLICES, max_weight=_MAX_SLICED_POLICIES
        )
        self._whole: dict[bool, Slice] = {}

    @classmethod
    def compile(cls, bundle: Mapping[str, Any], *, validate: bool = True) -> CompiledBundle:
        """Check a bundle and index it.

        Args:
            bundle: ``v``, ``schema``, ``policies`` (each ``id``, ``source``, ``mode``, ``text``), ``packs`` and, where
                there are any, ``safety_valves`` and ``platform_alone``.
            validate: Whether the policies must pass Cedar's strict validation. False only for a bundle that passed it
                before, as one that is named by a record did.

        Raises:
            BundleError: It is not such a bundle, or one of its policies is at fault.
        """
        try:
            digest_hex = canonical.digest_hex(dict(bundle))
        except FormatError as error:
            raise BundleError(f"a bundle must have canonical JSON: {error}") from error
        if bundle.get("v") != 1 or not isinstance(bundle.get("schema"), Mapping):
            raise BundleError("a bundle has v 1 and a schema in Cedar's JSON form")
        entries, valves, alone = (bundle.get(k, []) for k in ("policies", "safety_valves", "platform_alone"))
        if not isinstance(entries, list) or not isinstance(valves, list):
            raise BundleError("a bundle has a list of policies, and a list of safety valves or none")
        if not isinstance(alone, list) or not all(state in (_INACTIVE, _SUSPENDED) for state in alone):
            raise BundleError("it names a state in which the platform alone decides that this engine does not know")
        try:
            schema = _internal.Schema.from_json_str(json.dumps(bundle["schema"]))
        except ValueError as error:
            raise BundleError(f"its schema is not a Cedar schema: {error}") from error
        policies = [read_policy(ordinal, entry) for ordinal, entry in enumerate(entries)]
        if len({policy.id for policy in policies}) != len(policies):
            seen: set[str] = set()
            twice = next(p.id for p in policies if p.id in seen or seen.add(p.id))  # type: ignore[func-returns-value]
            raise BundleError("the id stands twice; records could not tell the two apart", policy_id=twice)
        if validate:
            _validate(schema, policies, [entry["text"] for entry in entries])
            try:
                policy_set(policy.fragment for policy in policies)
            except ValueError as error:
                raise BundleError(f"its policies do not stand in one set: {error}") from error
        return cls(digest_hex, schema, policies, valves, alone)

    @classmethod
    def from_bytes(cls, data: bytes) -> CompiledBundle:
        """Compile the canonical JSON of a bundle that was in force once, without validating its policies again.

        Raises:
            BundleError: Not the canonical JSON of a bundle.
        """
        try:
            bundle = canonical.loads(data, canonical=True)
        except FormatError as error:
            raise BundleError(f"a bundle is not canonical JSON: {error}") from error
        if not isinstance(bundle, dict):
            raise BundleError("a bundle is a JSON object")
        return cls.compile(bundle, validate=False)

    def is_platform_alone(self, principal: UidKey, facts: FactSet) -> bool:
        """Whether the asker is in a state in which the platform's policies alone decide, as the facts have it."""
        fact = facts.get(principal) if self._alone else None
        if fact is None:
            return False
        if _INACTIVE in self._alone and fact.entity["attrs"].get("active") is False:
            return True
        if _SUSPENDED not in self._alone:
            return False
        tenant = fact.entity["attrs"].get("tenant")
        tenant = tenant.get("__entity", tenant) if isinstance(tenant, Mapping) else None
        if not isinstance(tenant, Mapping):
            return False
        of_tenant = facts.get((str(tenant.get("type")), str(tenant.get("id"))))
        return of_tenant is not None and of_tenant.entity["attrs"].get("suspended") is True

    def slice_for(
        self,
        principal: UidKey,
        action: UidKey,
        resource: UidKey,
        principal_ancestors: tuple[UidKey, ...],
        resource_ancestors: tuple[UidKey, ...],
        *,
        platform_alone: bool = False,
    ) -> Slice:
        """The policies that can have a say on a request, parsed.

        Args:
            principal: Who asks.
            action: For what.
            resource: On what.
            principal_ancestors: Everything the principal is in, itself among them.
            resource_ancestors: The same of the resource.
            platform_alone: Whether the state of the asker leaves none but the platform's.
        """
        asked = (principal, action, resource, principal_ancestors, resource_ancestors, platform_alone)
        if (known := self._asked.get(asked)) is not None:
            return known
        if action not in self._ancestors:
            # The schema will refuse the request, whatever the policies. Nothing is remembered of a caller's inventions.
            return _parse((), matched=True)
        index = self._actions.get(action) or self._index(action)
        # What no policy on this action mentions makes no difference, so it must not make another slice.
        principals = tuple(k for k in request_keys(principal, principal_ancestors) if k in index.principals)
        resources = tuple(k for k in request_keys(resource, resource_ancestors) if k in index.resources)
        key = (action, principals, resources, platform_alone)
        found = self._slices.get(key)
        if found is None:
            chosen = {
                policy.ordinal: policy
                for action_key in index.ancestor_keys
                for principal_key in principals
                for resource_key in resources
                for policy in self._table.get((action_key, principal_key, resource_key), ())
                if policy.is_platform or not (index.is_valve or platform_alone)
            }
            found = _parse((chosen[ordinal] for ordinal in sorted(chosen)), matched=True)
            self._slices.put(key, found, len(found.policies) + 1)
        self._asked.put(asked, found, len(found.policies) + 1)
        return found

    def whole(self, action: UidKey, *, platform_alone: bool = False) -> Slice:
        """All policies that are in force on an action, unsliced."""
        platform_only = platform_alone or action[1] in self._valves
        found = self._whole.get(platform_only)
        if found is None:
            # Written without a lock: two threads write the same value.
            kept = (policy for policy in self.policies if policy.is_platform or not platform_only)
            found = _parse(kept, matched=False)
            self._whole[platform_only] = found
        return found

    def on_action(self, action: UidKey) -> list[Policy]:
        """All policies in force on an action, whoever asks and on whatever."""
        if action not in self._ancestors:
            return []
        index = self._actions.get(action) or self._index(action)
        found = {
            policy.ordinal: policy
            for (action_key, _, _), policies in self._table.items()
            if action_key in index.ancestor_keys
            for policy in policies
            if policy.is_platform or not index.is_valve
        }
        return [found[ordinal] for ordinal in sorted(found)]

    def _index(self, action: UidKey) -> _ActionIndex:
        keys = set(request_keys(action, self._ancestors[action]))
        index = _ActionIndex(tuple(keys), is_valve=action[1] in self._valves)
        for action_key, principal, resource in self._table:
            if action_key in keys:
                index.principals.add(principal)
                index.resources.add(resource)
        # Written without a lock: two threads write the same value.
        self._actions[action] = index
        return index


def read_policy(ordinal: int, entry: Any) -> Policy:
    """Read one policy of a bundle.

    Raises:
        BundleError: It is not one static policy, or its ``@id`` is not its id, or a guardrail permits.
    """
    if not isinstance(entry, Mapping) or entry.keys() != _POLICY_KEYS:
        raise BundleError(f"policy {ordinal} of the bundle is not an object of id, source, mode and text")
    if not all(isinstance(value, str) for value in entry.values()):
        raise BundleError(f"policy {ordinal} of the bundle holds something that is not text")
    policy_id, source, mode = entry["id"], entry["source"], entry["mode"]
    if not _ID.fullmatch(policy_id) or policy_id in RESERVED_IDS:
        raise BundleError(
            "the id must be of letters, digits and ._:/@-, and not be reserved", policy_id=policy_id[:128]
        )
    if mode not in ("enforce", "observe") or not _SOURCE.fullmatch(source):
        raise BundleError(f"mode {mode!r:.40} or source {source!r:.80} is unknown", policy_id=policy_id)
    ast = _read_ast(policy_id, entry["text"])
    # Cedar names policies by position; ours are named by their annotation, and the two must not part.
    annotations = {name: value or "" for name, value in ast.get("annotations", {}).items()}
    if annotations.get("id") != policy_id:
        raise BundleError(f"bears @id({annotations.get('id')!r}) instead of its id", policy_id=policy_id)
    if source == "guardrail" and ast["effect"] != "forbid":
        raise BundleError("a guardrail only forbids", policy_id=policy_id)
    return Policy(
        ordinal=ordinal,
        id=policy_id,
        source=source,
        mode=cast("Mode", mode),
        effect=cast("Effect", ast["effect"]),
        annotations=annotations,
        ast=ast,
        fragment=f"{json.dumps(policy_id)}:{json.dumps(ast)}",
        matched=f"{json.dumps(policy_id)}:{json.dumps({**_UNSCOPED, 'effect': ast['effect'], 'conditions': ast['conditions']})}",
    )


def _read_ast(policy_id: str, text: str) -> dict[str, Any]:
    """One static policy in Cedar's JSON form."""
    try:
        verify_text(text, "it", may_cost=True)
        parsed = json.loads(cedarpy.policies_to_json_str(text))
        if parsed["templates"] or len(parsed["staticPolicies"]) != 1:
            raise BundleError("its text must be exactly one policy and no template", policy_id=policy_id)
        ast: dict[str, Any]
        (ast,) = parsed["staticPolicies"].values()
        verify_tree(ast, "it")
    except (PolicySourceError, RecursionError) as error:
        raise BundleError(f"is not one that can be evaluated: {error}", policy_id=policy_id) from error
    except ValueError as error:
        raise BundleError(f"does not parse: {error}", policy_id=policy_id) from error
    return ast


def _parse(policies: Iterable[Policy], *, matched: bool) -> Slice:
    chosen = tuple(policies)
    text: dict[Mode, list[str]] = {"enforce": [], "observe": []}
    for policy in chosen:
        text[policy.mode].append(policy.matched if matched else policy.fragment)
    return Slice(
        policies=chosen,
        enforced=policy_set(text["enforce"]),
        observed=policy_set(text["observe"]) if text["observe"] else None,
    )


def _validate(schema: _internal.Schema, policies: Sequence[Policy], texts: Sequence[str]) -> None:
    result = cedarpy.validate_policies("\n".join(texts), schema)
    if result.validation_passed:
        return
    # Each text is one policy, so the n-th positional id is the n-th of the bundle.
    by_position = {f"policy{policy.ordinal}": policy.id for policy in policies}
    said = [f"{by_position.get(error.policy_id, error.policy_id)}: {error.error}" for error in result.errors]
    raise BundleError(f"{len(said)} finding(s) of the strict validation: {'; '.join(said[:20])}")


def _action_ancestors(schema: _internal.Schema) -> dict[UidKey, tuple[UidKey, ...]]:
    """Every action of a schema with the groups it is in, itself among them.

    Entities parsed against a schema contain its actions, with all their ancestors as parents.
    """
    parents: dict[UidKey, list[UidKey]] = {
        (entity["uid"]["type"], entity["uid"]["id"]): [(p["type"], p["id"]) for p in entity["parents"]]
        for entity in json.loads(str(_internal.Entities.from_json_str("[]", schema)))
    }
    closed: dict[UidKey, tuple[UidKey, ...]] = {}
    for action in parents:
        seen, todo = {action}, [action]
        while todo:
            for parent in parents.get(todo.pop(), ()):
                if parent not in seen:
                    seen.add(parent)
                    todo.append(parent)
        closed[action] = tuple(sorted(seen))
    return closed
