"""In-process decisions: how long one takes, and whether it stays flat as a tenant's own policies grow in number.

Run with ``python bench/decide.py``. Each size is the platform's guardrails, roles and packs plus that many policies of the
tenant, scoped as real ones are: by action, by principal (a team or a person) and by resource (one thing or a kind). Handles
are warm; the record is encoded after the decision and timed apart. Ratios within one run are what to look at: the sizes are
measured in turns, so that a busy machine slows all of them.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import cedarpy

from licet_engine.decide import CompiledBundle, Fact, FactSet, Request, build_record, decide, decide_unsliced
from licet_engine.decide.bundle import policy_set
from licet_engine.decide.decision import evaluate, query_of
from licet_policies import bundle as bundles
from licet_policies.bundle import compose
from licet_policies.packs import PackChoice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZES = (10, 100, 1_000, 10_000)
TARGET_P50_US = 80
ROUNDS = 40
ASKERS = 100
NOW_MS = 1_800_000_000_000

Question = tuple[Request, FactSet]


def own_policies(count: int) -> str:
    """``count`` policies of a tenant: mostly grants to teams and people on single things, some prohibitions."""
    actions = ("model.promote", "dataset.read", "training.launch", "model.read")
    kinds = ("ModelVersion", "Dataset", "Run", "ModelVersion")

    def one(i: int) -> str:
        action, kind = actions[i % 4], kinds[i % 4]
        # A hundred policies for each ten teams, whatever the size: more policies are more teams, people and things.
        team, person = f'Role::"team-{i // 10}"', f'Person::"northbank/p{i // 4}"'
        thing = f'{kind}::"northbank/thing-{i // 7}"'
        head = f'@id("own.p{i}") @title("Policy {i}") @advice("Ask team {i // 10}.")'
        if i % 10 < 6:  # noqa: PLR2004  # Six in ten.
            rule = f'permit (principal in {team}, action == Action::"{action}", resource == {thing})'
        elif i % 10 < 9:  # noqa: PLR2004  # Three in ten.
            rule = f'permit (principal == {person}, action == Action::"{action}", resource is {kind})'
        else:
            rule = f'forbid (principal in {team}, action == Action::"{action}", resource == {thing})'
        return f"{head} {rule} when {{ context.now_ms > {NOW_MS - i} && principal.active }};"

    return "\n".join(map(one, range(count)))


def entity(kind: str, name: str, attrs: dict[str, Any], parents: tuple[str, ...] = ()) -> Fact:
    """One fact."""
    roles = [{"type": "Role", "id": role} for role in parents]
    return Fact.from_entity({"uid": {"type": kind, "id": name}, "attrs": attrs, "parents": roles})


def questions(count: int) -> list[Question]:
    """Requests of many people on many things, each with its facts, allows and denials among them."""
    tenant = {"type": "Tenant", "id": "northbank"}
    tenant_fact = entity("Tenant", "northbank", {"region": "us", "suspended": False})
    restrictions = {
        "classification": "confidential",
        "protected": True,
        "residency": ["us"],
        "uses": ["credit-risk"],
        "expires_at_ms": NOW_MS + 86_400_000,
        "held": False,
    }
    made: list[Question] = []
    for n in range(ASKERS):
        i = (n * max(1, count // ASKERS) + n // 2) % count
        asker = entity(
            "Person", f"northbank/p{i // 4}", {"tenant": tenant, "active": True}, ("data-scientist", f"team-{i // 10}")
        )
        thing = f"northbank/thing-{i // 7}"
        if n % 2:
            action, context = "dataset.read", {"now_ms": NOW_MS, "claimed": []}
            attrs = {"tenant": tenant, "restrictions": restrictions, "held": False, "archived": False, "derived": 1}
            resource = entity("Dataset", thing, attrs)
        else:
            action, context = "model.promote", {"now_ms": NOW_MS, "claimed": [], "stage": "prod", "region": "us"}
            model = {"type": "Model", "id": "northbank/credit-risk"}
            attrs = {
                "tenant": tenant,
                "model": model,
                "tier": "high",
                "restrictions": restrictions,
                "use": "credit-risk",
                "stage": "staging",
                "held": False,
                "authors": [],
                "pipelines": [],
                "binding": "b1",
                "approvals": {
                    t: {"binding": "b1", "by": [], "expires_at_ms": (1 << 53) - 1}
                    for t in ("compliance", "engineering", "model-risk")
                },
                "signed": True,
                "checks": {
                    "technical": {"passed": True, "auc_lower_micro": 740_000, "calibration_error_micro": 20_000},
                    "bias": {
                        "passed": True,
                        "selection_rate_ratio_micro": 910_000,
                        "selection_rate_ratio_lower_micro": 850_000,
                    },
                    "explainability": {"passed": True, "protected_or_proxy_share_micro": 50_000},
                    "drift": {"passed": True, "drifted_features": 0},
                },
            }
            resource = entity("ModelVersion", thing, attrs)
        request = Request(asker.uid, action, resource.uid, context)
        made.append((request, FactSet([tenant_fact, asker, resource])))
    return made


def timed_us(call: Callable[[], object]) -> float:
    """How long one call takes, in microseconds."""
    start_ns = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start_ns) / 1_000


def percentiles(samples_us: list[float]) -> tuple[float, float]:
    """The 50th and the 99th."""
    cuts = statistics.quantiles(samples_us, n=100)
    return cuts[49], cuts[98]


def as_wrapped(compiled: CompiledBundle, request: Request, facts: FactSet) -> object:
    """The evaluation through cedarpy's public wrapper, on the same slice and handles."""
    principal, resource = request.principal.key, request.resource.key
    chosen = compiled.slice_for(
        principal, ("Action", request.action), resource, facts.ancestors(principal), facts.ancestors(resource)
    )
    handle = cedarpy.Entities(compiled.entities.get(facts))
    query = query_of(request) | {"context": dict(request.context)}
    return cedarpy.is_authorized(query, chosen.enforced, handle, compiled.schema).decision


def rounds(sets: dict[int, tuple[CompiledBundle, list[Question]]]) -> Iterator[tuple[int, CompiledBundle, Question]]:
    """Every question of every size, the sizes in turns."""
    for _ in range(ROUNDS):
        for n in range(ASKERS):
            for size, (compiled, asked) in sets.items():
                yield size, compiled, asked[n]


def main() -> None:  # noqa: PLR0915  # One measurement after another, read from top to bottom.
    """Measure and print."""
    # How flat a decision stays is a matter of the index. What a tenant may write is bounded far below the largest size here,
    # so that its worst policies stay cheap; here they are lifted, and they alone.
    bundles.MAX_OWN_CHARS = bundles.MAX_OWN_STEPS = 1 << 30

    packs = [PackChoice("sr-11-7"), PackChoice("residency", "enforce", {"regions": ["us"]})]
    sets: dict[int, tuple[CompiledBundle, list[Question]]] = {}
    platform = len(compose(packs)["policies"])
    print(f"decide: {platform} platform policies (guardrails, roles, packs) and the tenant's own\n")
    for size in SIZES:
        bundle = compose(packs, own_policies(size))
        start_s = time.perf_counter()
        compiled = CompiledBundle.compile(bundle)
        sets[size] = (compiled, questions(size))
        print(f"compile, {size:>6} own: {time.perf_counter() - start_s:6.2f} s")

    allowed = 0
    cold: dict[int, list[float]] = {size: [] for size in SIZES}
    for size, (compiled, asked) in sets.items():
        for request, facts in asked:
            cold[size].append(timed_us(lambda c=compiled, r=request, f=facts: decide(c, r, f)))  # type: ignore[misc]
        answers = [decide(compiled, request, facts) for request, facts in asked]
        allowed += sum(answer.allowed for answer in answers)
        assert not any(answer.errors for answer in answers), "the questions must be good ones"
        assert answers[:4] == [decide_unsliced(compiled, *question) for question in asked[:4]]

    assert 0 < allowed < ASKERS * len(SIZES), "the questions must be answered both ways"

    warm: dict[int, list[float]] = {size: [] for size in SIZES}
    for size, compiled, (request, facts) in rounds(sets):
        warm[size].append(timed_us(lambda c=compiled, r=request, f=facts: decide(c, r, f)))  # type: ignore[misc]

    print(
        f"\n{'own policies':>12} {'best us':>8} {'p50 us':>8} {'p99 us':>8} {'of smallest':>12} {'first p50 us':>13} {'in slice':>9}"
    )
    base_us, _ = percentiles(warm[SIZES[0]])
    for size, (compiled, asked) in sets.items():
        p50_us, p99_us = percentiles(warm[size])
        cold_us, _ = percentiles(cold[size])
        held = statistics.mean(
            len(
                compiled.slice_for(
                    r.principal.key, ("Action", r.action), r.resource.key,
                    f.ancestors(r.principal.key), f.ancestors(r.resource.key),
                ).policies
            )
            for r, f in asked
        )  # fmt: skip
        ratio = p50_us / base_us
        print(
            f"{size:>12,} {min(warm[size]):>8.1f} {p50_us:>8.1f} {p99_us:>8.1f} {ratio:>11.2f}x {cold_us:>13.1f} {held:>9.1f}"
        )

    compiled, asked = sets[SIZES[-1]]
    ours: list[float] = []
    wrapped: list[float] = []
    writing: list[float] = []
    for request, facts in asked * 10:
        decide(compiled, request, facts)  # Either finds what it needs in the processor's caches.
        ours.append(timed_us(lambda r=request, f=facts: decide(compiled, r, f)))  # type: ignore[misc]
        wrapped.append(timed_us(lambda r=request, f=facts: as_wrapped(compiled, r, f)))  # type: ignore[misc]
        decision = decide(compiled, request, facts)
        writing.append(
            timed_us(
                lambda r=request, f=facts, d=decision: build_record(  # type: ignore[misc]
                    decision_id="0" * 32, time_ms=NOW_MS, tenant="northbank", request=r, decision=d, facts=f,
                    facts_version=1, bundle_hex=compiled.digest_hex,
                )
            )
        )  # fmt: skip
    watching = CompiledBundle.compile(compose([packs[0], PackChoice("residency", "observe", {"regions": ["us"]})]))
    enforcing = CompiledBundle.compile(compose(packs))
    watched: dict[bool, list[float]] = {True: [], False: []}
    promotions = [(r, f) for r, f in asked if r.action == "model.promote"]
    for request, facts in promotions * 20:
        for watches, either in ((True, watching), (False, enforcing)):
            watched[watches].append(timed_us(lambda c=either, r=request, f=facts: decide(c, r, f)))  # type: ignore[misc]
    whole = [timed_us(lambda q=question: decide_unsliced(compiled, *q)) for question in asked[:5]]  # type: ignore[misc]
    p50_us = percentiles(ours)[0]
    print(f"\nat {SIZES[-1]:,}: through cedarpy's wrapper {percentiles(wrapped)[0] / p50_us:.2f}x as long;", end=" ")
    print(
        f"unsliced {statistics.median(whole) / p50_us:,.0f}x; writing the record {percentiles(writing)[0]:.1f} us more"
    )
    nothing = policy_set(())
    floor: list[float] = []
    for request, facts in asked * 10:
        query, handle = query_of(request), compiled.entities.get(facts)
        floor.append(timed_us(lambda q=query, h=handle: evaluate(nothing, q, h, compiled.schema)))  # type: ignore[misc]
    print(f"for comparison, Cedar on no policy at all, here and now: p50 {percentiles(floor)[0]:.1f} us")
    extra_us = percentiles(watched[True])[0] - percentiles(watched[False])[0]
    print(f"a pack in observe mode instead of enforced: {extra_us:.1f} us more where it speaks")
    verdict = "met" if max(percentiles(warm[size])[0] for size in SIZES) <= TARGET_P50_US else "missed"
    print(f"target of {TARGET_P50_US} us p50 at every size: {verdict}")


if __name__ == "__main__":
    main()
