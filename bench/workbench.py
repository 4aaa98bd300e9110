"""The workbench: how long lint, tests and coverage of a large project take.

Run with ``python bench/workbench.py``. The policies are scoped as real ones are, by action, by principal and by resource. A bundle takes at
most 500 own policies; lint is measured with 1,000, and says that they are too many.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from decide import own_policies

from licet_engine.workbench.cases import load_cases
from licet_engine.workbench.coverage import coverage
from licet_engine.workbench.lint import lint
from licet_engine.workbench.project import load_project
from licet_engine.workbench.scaffold import write_project
from licet_engine.workbench.testing import Runner

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

POLICIES = 1_000
TARGET_S = 5
CASES = 1_000


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds that ``work`` takes, and what it gives."""
    began_s = time.perf_counter()
    value = work()
    return time.perf_counter() - began_s, value


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory(prefix="licet-bench-") as scratch:
        clean, broken, tests = (Path(scratch) / name for name in ("clean", "broken", "tests"))
        for folder, text in ((clean, own_policies(POLICIES)), (broken, own_policies(POLICIES))):
            (folder / "policies").mkdir(parents=True)
            (folder / "licet.toml").write_text("version = 1\n")
            # In every tenth policy an attribute is misspelt, and its place is to be found.
            wrong = text if folder == clean else text.replace("0 && principal.active", "0 && principal.activ")
            (folder / "policies" / "own.cedar").write_text(wrong)
        for name, folder in (("sound", clean), ("with mistakes", broken)):
            lint_s, found = timed(lambda folder=folder: lint(load_project(folder)))  # type: ignore[misc]
            print(f"lint of {POLICIES} policies, {name}: {lint_s:.2f} s (aim {TARGET_S} s), {len(found)} findings")
        write_project(tests)
        row = "      - {name: again NUMBER, expect: allow, because: [role.data-scientist.models]}\n"
        table = (
            "fixtures: [fixtures.yaml]\ntests:\n  - name: A download\n    principal: Person::northbank/raj\n"
            "    action: model.download\n    resource: ModelVersion::northbank/pricing@3\n    rows:\n"
        )
        rows = "".join(row.replace("NUMBER", str(number)) for number in range(CASES))
        (tests / "tests" / "many.yaml").write_text(table + rows)
        project = load_project(tests)
        compile_s, runner = timed(lambda: Runner(project))
        test_s, results = timed(lambda: [runner.run(case) for case in load_cases(project)])
        assert all(result.outcome == "passed" for result in results)
        print(f"test of {len(results)} cases: {test_s:.2f} s, and {compile_s:.2f} s to compile the bundle")
        cover_s, measured = timed(lambda: coverage(project, runner.compiled, results))
        print(f"coverage of {len(results)} cases: {cover_s:.2f} s, {measured.percent} %")


if __name__ == "__main__":
    main()
