"""Lint finds what it says where it says, hides nothing without a reason, and one mistake hides no other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from licet_engine.workbench.checked import check_policy
from licet_engine.workbench.errors import ProjectError
from licet_engine.workbench.findings import Finding
from licet_engine.workbench.formatting import format_text, unformatted, write_text
from licet_engine.workbench.lint import lint, lint_with
from licet_engine.workbench.project import load_project
from licet_engine.workbench.rules import Context, registry
from licet_engine.workbench.scaffold import write_project
from licet_engine.workbench.solver import Solver
from licet_engine.workbench.spans import SourceFile, read_policies
from licet_policies import guardrails, pack, pack_names, roles
from licet_policies.bounds import MAX_POLICY_CHARS
from licet_policies.tokens import tokens

# Test files are imported each by itself; the project they share stands beside them.
sys.path.append(str(Path(__file__).parent))
from workbench_world import POLICY, READ, TOML, write  # The line above finds it.


def found(folder: Path, text: str, toml: str = TOML) -> list[Finding]:
    return lint(load_project(write(folder, {"licet.toml": toml, "policies/a.cedar": text})))


def places(folder: Path, text: str, toml: str = TOML) -> dict[str, list[tuple[int, int, int, int]]]:
    """By rule, where it found something."""
    by_rule: dict[str, list[tuple[int, int, int, int]]] = {}
    for one in found(folder, text, toml):
        span = one.span
        by_rule.setdefault(one.rule, []).append((span.line, span.column, span.end_line, span.end_column))
    return by_rule


def forbid(condition: str, head: str = POLICY.split("forbid", maxsplit=1)[0]) -> str:
    return f'{head}forbid (principal, action == Action::"model.promote", resource is ModelVersion)\nwhen {{ {condition} }};\n'


def test_a_clean_project_has_no_finding(tmp_path: Path) -> None:
    assert found(tmp_path, POLICY + READ) == []


def test_the_project_that_init_writes_is_clean(tmp_path: Path) -> None:
    write_project(tmp_path / "p")
    project = load_project(tmp_path / "p")
    assert lint(project) == []
    assert list(unformatted(project)) == []


@pytest.mark.parametrize(
    ("condition", "column", "end", "message"),
    [
        ("resource.stag == 1", 17, 21, "did you mean `stage`"),
        ('resource.tier == "x" && context.regio == "us"', 40, 45, "did you mean `context.region`"),
        ('("é" == resource.tier) && resource.stag == 1', 43, 47, "`stag`"),
        ("resource.checks.bias.passed", 24, 28, "optional attribute"),
        (
            "resource.checks has bias && resource.checks.bias.passed && resource.checks.drift.passed",
            83,
            88,
            "checks.drift`",
        ),
        ("resource.held && (resource.signed && resource.nothing)", 54, 61, "`nothing`"),
        ("resource.held || resource.signed || resource.nothing", 53, 60, "`nothing`"),
        ("if resource.nothing then true else false", 20, 27, "`nothing`"),
        ('resource["nothing"]', 17, 26, "`nothing`"),
        ("resource.tier > 3", 8, 25, "unexpected type"),
        ("principal is Persn", 21, 26, "did you mean `Person`"),
        ('resource.restrictions.residencey.contains("us")', 30, 40, "did you mean `restrictions.residency`"),
        ('context.vers == "us"', 16, 20, "in context"),
    ],
)
def test_what_does_not_fit_the_schema_is_pointed_at(
    tmp_path: Path, condition: str, column: int, end: int, message: str
) -> None:
    (one,) = [each for each in found(tmp_path, forbid(condition)) if each.rule == "schema"]
    assert (one.span.line, one.span.column, one.span.end_column) == (7, column, end)
    assert message in one.message
    assert one.policy == "desk.freeze"


def test_a_guard_before_a_part_counts_and_the_same_mistake_twice_is_pointed_at_twice(tmp_path: Path) -> None:
    text = forbid("resource.checks has bias && resource.checks.bias.passed && resource.a == 1 && resource.a == 2")
    found_here = [(one.span.column, one.message) for one in found(tmp_path, text) if one.rule == "schema"]
    assert all("`a`" in message for _, message in found_here)
    assert found_here[0][0] == text.splitlines()[6].index("resource.a") + 10


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("permit (principal, action, resource) when { 1 == };", 1, 50),
        ("permit (principle, action, resource);", 1, 9),
        ("permit (principal, action, resource)\nwhen { # };", 2, 8),
        ("permit (principal, action, resource) when { 1 + 2", 1, 49),
        ("permit (principal, action, resource)", 1, 36),
        ("allow (principal, action, resource);", 1, 1),
        ('@id("a.b") @id("a.b") permit (principal, action, resource);', 1, 13),
        ("permit (principal, action, resource) when { (1 };", 1, 48),
        ('permit (principal, action, resource) when { "x }', 1, 45),
        ("permit (principal, action, resource) when { nothing == 1 };", 1, 45),
        ("\n\n  )\n;", 3, 3),
        ("permit (principal, action, resource) when { " + "!" * 5000 + "true };", 1, 1),
    ],
)
def test_what_is_no_cedar_is_pointed_at_and_hides_no_other_policy(
    tmp_path: Path, text: str, line: int, column: int
) -> None:
    ending = "" if text.endswith(";") else ";"
    by_rule = places(tmp_path, f"{text}\n{ending}{forbid('resource.stag == 1')}" if ending == "" else text)
    (at,) = by_rule.get("syntax") or by_rule["too-large"]
    assert at[:2] == (line, column)
    if ending == "":
        assert len(by_rule["schema"]) == 1


def test_columns_are_counted_in_characters_and_lines_by_line_feeds(tmp_path: Path) -> None:
    text = "// é𝄞 \r\n" + forbid('"𝄞é" == resource.tier && resource.stag == 1').replace("\n", "\r\n")
    (at,) = places(tmp_path, text)["schema"]
    assert at == (8, 42, 8, 46)


def test_a_comment_with_a_reason_switches_a_rule_off_for_its_policy_alone(tmp_path: Path) -> None:
    headless = POLICY.replace('@owner("ops")\n', "")
    off = "// licet-lint: off missing-owner: the folder has owners\n"
    text = off + headless + headless.replace("desk.freeze", "desk.other")
    first, second = found(tmp_path, text)[0], found(tmp_path, text)[-1]
    owners = [one for one in found(tmp_path, text) if one.rule == "missing-owner"]
    assert [one.suppressed for one in owners] == ["the folder has owners", None]
    assert first.policy == "desk.freeze"
    assert second.policy == "desk.other"


def test_several_rules_are_switched_off_in_one_comment_that_may_stand_in_the_policy(tmp_path: Path) -> None:
    text = READ.replace('@title("Auditors read public data")\n', "").replace(
        "permit", "// licet-lint: off missing-title, unscoped-resource: an example\npermit"
    )
    by_rule = {one.rule: one.suppressed for one in found(tmp_path, text)}
    assert by_rule == {"missing-title": "an example", "suppression-unused": None}


@pytest.mark.parametrize(
    ("comment", "rule"),
    [
        ("off missing-owner", "suppression-without-reason"),
        ("off missing-owner:   ", "suppression-without-reason"),
        ("off nonsense: because", "suppression-unknown"),
        ("off schema: because", "suppression-unknown"),
        ("of missing-owner: because", "suppression-unknown"),
        ("", "suppression-unknown"),
        ("off missing-owner: because", "suppression-unused"),
    ],
)
def test_what_is_switched_off_wrongly_is_a_finding_and_stays_on(tmp_path: Path, comment: str, rule: str) -> None:
    assert list(places(tmp_path, f"// licet-lint: {comment}\n{POLICY}")) == [rule]
    bad = f"// licet-lint: {comment}\n" + forbid("resource.stag == 1")
    assert "schema" in places(tmp_path, bad)


def test_a_rule_is_switched_off_for_the_project_in_licet_toml_with_a_reason(tmp_path: Path) -> None:
    headless = READ.replace('@title("Auditors read public data")\n', "")
    toml = TOML + '[lint.off]\nmissing-title = "drafts"\n'
    assert [one.suppressed for one in found(tmp_path, headless, toml)] == ["drafts"]
    by_rule = places(tmp_path, headless, TOML + '[lint.off]\nmissing-title = " "\nsyntax = "x"\nnothing = "x"\n')
    assert by_rule["suppression-without-reason"] == [(3, 1, 3, 20)]
    assert by_rule["suppression-unknown"] == [(4, 1, 4, 13), (5, 1, 5, 14)]
    assert "missing-title" in by_rule


def test_a_string_that_looks_like_a_comment_switches_nothing_off(tmp_path: Path) -> None:
    text = POLICY.replace('"Wait."', '"// licet-lint: off missing-owner: no"').replace('@owner("ops")\n', "")
    assert [one.suppressed for one in found(tmp_path, text)] == [None]


def test_what_is_wrong_with_an_invariant_is_found_in_its_file(tmp_path: Path) -> None:
    invariant = READ.replace("desk.read", "desk.never").replace("permit", "@never\npermit")
    root = write(tmp_path, {"policies/a.cedar": READ, "invariants/i.cedar": invariant})
    assert lint(load_project(root)) == []
    write(root, {"invariants/i.cedar": invariant.replace("@never", "@nver").replace("resource.held", "resource.hold")})
    assert {(one.rule, one.span.file) for one in lint(load_project(root))} == {
        ("unknown-annotation", "invariants/i.cedar"),
        ("invariant-form", "invariants/i.cedar"),
        ("schema", "invariants/i.cedar"),
    }


def test_more_policies_than_a_bundle_takes_are_told(tmp_path: Path) -> None:
    text = "".join(READ.replace("desk.read", f"desk.read-{i}") for i in range(501))
    toml = TOML + '[lint.off]\nduplicate-policy = "counted here"\n'
    counted = [one for one in found(tmp_path, text, toml) if one.suppressed is None]
    assert {one.rule for one in counted} == {"too-large"}
    assert any("501 policies in all; a bundle takes at most 500" in one.message for one in counted)


def test_every_shipped_policy_is_clean_but_for_the_ids_that_are_the_platforms(tmp_path: Path) -> None:
    regions = {"regions": ["us"]}
    parameters = dict.fromkeys(("export-control", "hipaa", "residency"), regions)
    parameters["eu-ai-act"] = {"high_risk_uses": ["credit-scoring"]}
    packs = [pack(name) for name in pack_names()]
    rules = [policy for each in packs for policy in each.policies(each.resolve(parameters.get(each.name, {})))]
    texts = [policy.text for policy in (*guardrails(), *roles(), *rules)]
    # Packs of several frameworks may demand the same.
    serious = {"duplicate-policy", "reserved-id", "unscoped-resource", "safety-valve", "several-rules", "missing-owner"}
    told = {one.rule for one in found(tmp_path, "\n".join(texts)) if one.rule != "too-large"}
    assert told <= serious


def test_every_character_of_a_text_is_in_exactly_one_token() -> None:
    for text in (POLICY, '"a\\" // b" // c\n"', "\r\n\t é𝄞 ;;;", '"open'):
        assert "".join(token.text for token in tokens(text)) == text


def written(text: str) -> Iterator[str]:
    for policy in read_policies(SourceFile("a", text)):
        yield check_policy(policy, "policy").problem or "sound"


def test_semicolons_in_strings_and_comments_end_no_policy() -> None:
    text = POLICY.replace('"Wait."', '"a; b"').replace("when", "// c; d\nwhen")
    assert list(written(text)) == ["sound"]


def test_text_of_any_size_is_taken_apart_soon_or_not_at_all() -> None:
    for text in ("(" * 500_000, ")" * 500_000, "permit" + "(" * 16_000 + ";", "@" * 200_000, '"' * 200_001):
        assert set(written(text)) <= {"syntax", "too-large"}
    assert list(written("permit(principal,action,resource)" + " " * MAX_POLICY_CHARS + ";")) == ["too-large"]


def test_formatting_keeps_comments_annotations_and_meaning() -> None:
    text = '// before\n@id("a.b")    // behind\n@title("x  y")\npermit(principal,action, // in\nresource)when{1==1};// after\n'
    formatted = format_text(SourceFile("a", text))
    assert formatted != text
    assert format_text(SourceFile("a", formatted)) == formatted
    for piece in ("// before", "// behind", "// in", "// after", '@title("x  y")'):
        assert piece in formatted


def test_a_file_of_comments_and_an_empty_file_are_left_as_they_are() -> None:
    for text in ("", "\n", "// only this"):
        assert format_text(SourceFile("a", text)) == text


def test_what_does_not_parse_is_not_formatted_and_says_where() -> None:
    with pytest.raises(ProjectError, match="a:2: is not formatted: unexpected token"):
        format_text(SourceFile("a", "\npermit (principal, action, resource) when { 1 == };"))


def test_a_formatted_file_keeps_its_mode_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    root = write(tmp_path, {"policies/a.cedar": POLICY})
    (root / "policies" / "a.cedar").chmod(0o640)
    project = load_project(root)
    for file, text in unformatted(project):
        write_text(project, file, text)
    assert (root / "policies" / "a.cedar").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in (root / "policies").iterdir()] == ["a.cedar"]
    assert list(unformatted(load_project(root))) == []


def test_every_rule_has_a_name_in_words_and_no_two_have_one() -> None:
    rules = list(registry())
    assert len(set(rules)) == len(rules) > 20
    assert all(rule == rule.lower() and " " not in rule for rule in rules)


def test_what_takes_the_solver_is_looked_for_only_where_that_is_asked(tmp_path: Path) -> None:
    never = POLICY.replace("when {", "when { context.now_ms > 5 && context.now_ms < 5 && ")
    folder = write(tmp_path / "p", {"policies/a.cedar": never})
    assert [one.rule for one in lint(load_project(folder))] == []
    assert [one.rule for one in lint(load_project(folder), prove=True)] == ["never-applies"]
    # Switched off with a reason, it is told as such; where it is not looked for, that it was switched off is no finding.
    (folder / "policies" / "a.cedar").write_text("// licet-lint: off never-applies: kept for the day it does\n" + never)
    assert [one.rule for one in lint(load_project(folder))] == []
    (told,) = lint(load_project(folder), prove=True)
    assert told.suppressed == "kept for the day it does"


def test_the_example_project_is_clean_for_the_solver_too(tmp_path: Path) -> None:
    write_project(tmp_path / "p")
    assert lint(load_project(tmp_path / "p"), prove=True) == []


def test_what_the_solver_cannot_tell_is_a_finding_of_each_rule_that_asked(tmp_path: Path) -> None:
    # Two factors of a product of two primes: the bits of a multiplication are what solvers are slowest at.
    hard = " && ".join(f"resource.{name} > 1 && resource.{name} < 3000000000" for name in ("cost", "budget_remaining"))
    hard += " && resource.cost * resource.budget_remaining == 4611685975477714963"
    head = 'forbid (principal, action == Action::"training.launch", resource is Run)'
    text = f'@id("desk.when")\n{head}\nwhen {{ {hard} }};\n@id("desk.unless")\n{head}\nunless {{ {hard} }};\n'
    context = Context(load_project(write(tmp_path / "p", {"policies/a.cedar": text})))
    context.solver = Solver(context.project.schema, time_limit_s=0.01)
    rules = [rule for rule in registry().values() if rule.is_proof]
    found = {
        (one.rule, one.policy) for one in lint_with(context.project, rules, context) if "cannot be told" in one.message
    }
    assert {
        ("never-applies", "desk.when"),
        ("always-applies", "desk.unless"),
        ("shadowed-policy", "desk.when"),
    } <= found


def test_an_error_is_told_with_the_kind_of_request_and_what_cedar_says(tmp_path: Path) -> None:
    text = POLICY.replace("context.now_ms >= 1000", "context.now_ms * 2 >= 1000")
    (one,) = lint(load_project(write(tmp_path / "p", {"policies/a.cedar": text})), prove=True)
    assert one.rule == "can-err"
    assert "model.download" in one.message
    assert "overflow" in one.message


def test_of_what_shadows_the_platforms_own_is_told_first(tmp_path: Path) -> None:
    inactive = POLICY.replace('resource.tier == "high" && context.now_ms >= 1000', "!principal.active")
    again = inactive.replace("desk.freeze", "desk.again").replace("resource.signed", "resource.signed || resource.held")
    (first, second) = lint(load_project(write(tmp_path / "p", {"policies/a.cedar": inactive + again})), prove=True)
    assert {first.rule, second.rule} == {"shadowed-policy"}
    assert "guardrail.active.principal" in first.message
    assert "guardrail.active.principal" in second.message


def test_a_policy_that_is_none_keeps_the_solver_from_none_of_the_others(tmp_path: Path) -> None:
    never = POLICY.replace("when {", "when { context.now_ms > 5 && context.now_ms < 5 && ")
    files = {"policies/a.cedar": never, "policies/b.cedar": "forbid ("}
    found = lint(load_project(write(tmp_path / "p", files)), prove=True)
    assert [(one.rule, one.span.file) for one in found] == [
        ("never-applies", "policies/a.cedar"),
        ("syntax", "policies/b.cedar"),
    ]
