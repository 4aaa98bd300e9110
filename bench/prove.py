"""How long it takes to prove everything that is shipped, with its invariants, and what comes of it.

Run with ``python bench/prove.py``. The bundle is the guardrails, the roles and every pack; proved of it are its invariants,
that no policy errs, and that nothing is allowed which a guardrail forbids, for every kind of request that the schema allows.
"""

from __future__ import annotations

import time

from licet_engine.workbench.symbolic import Progress, Proved, Prover, bundle_properties
from licet_policies import PackChoice, compose, load_schema

TARGET_S = 30.0


def shown(progress: Progress) -> None:
    """A line now and then."""
    if progress.done % 50 == 0 or progress.done == progress.total:
        print(f"  {progress.done:>4} of {progress.total} kinds of request", flush=True)


def main() -> None:
    """Measure and print."""
    bundle = compose([PackChoice("sr-11-7"), PackChoice("residency", "enforce", {"regions": ["us"]})])
    properties = bundle_properties(bundle)
    prover = Prover(load_schema())
    print(f"prove: {len(bundle['policies'])} policies, {len(properties)} properties\n")
    began_s = time.perf_counter()
    outcomes = prover.prove(properties, shown)
    took_s = time.perf_counter() - began_s
    proved = sum(isinstance(outcome, Proved) and not outcome.vacuous for outcome in outcomes)
    assert proved == len(properties), "what is shipped must be proved, or the figure says nothing"
    questions = len(properties) * len(prover.environments())
    print(
        f"\n{proved} proved: {questions:,} questions in {took_s:.1f} s, {took_s / questions * 1e3:.2f} ms each, on one core"
    )
    print(f"target of {TARGET_S:.0f} s: {'met' if took_s <= TARGET_S else 'missed'}")


if __name__ == "__main__":
    main()
