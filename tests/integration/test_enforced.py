"""Controls of packs in a running installation: refusals are counted under the clause whose policy refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
from service_world import Installation, problem  # The line above finds it.

from licet_engine.cli import run

pytestmark = pytest.mark.slow

TENANT = "clinic"


@pytest.fixture(scope="module")
def clinic(world: Installation) -> str:
    """A tenant with the pack hipaa, in which health data for a use that is not permitted was refused twice."""
    parameters = {"regions": ["us"], "health_classifications": ["confidential"], "permitted_uses": ["treatment"]}
    world.people(TENANT, "us", packs=[{"name": "hipaa", "parameters": parameters}])
    data = b"a,deny\n1,0\n2,1\n"
    body = world.dataset_body(
        f"{TENANT}/ana", data, classification="confidential", residency=["us"], uses=["marketing"]
    )
    for name in ("one", "two"):
        answer = world.client(f"{TENANT}/ana").act("dataset.register", f"{TENANT}/{name}", body)
        assert [policy.id for policy in answer.policies] == ["hipaa.use.data"]
    return TENANT


@pytest.fixture
def licet(
    world: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    def call(who: str, *arguments: str) -> tuple[int, str]:
        token = tmp_path / "token"
        token.write_text(world.tokens[who])
        token.chmod(0o600)
        monkeypatch.setenv("LICET_URL", world.url)
        monkeypatch.setenv("LICET_TOKEN_FILE", str(token))
        code = run(arguments)
        return code, capsys.readouterr().out

    return call


def counted(text: str) -> dict[str, dict[str, int]]:
    return {f"{row['framework']}:{row['clause']}": row["decisions"] for row in json.loads(text)["controls"]}


def test_a_refusal_is_counted_under_its_clause(clinic: str, licet: Any) -> None:
    asked = ("policy", "controls", "--framework", "hipaa", "--evidence", clinic)
    code, out = licet(f"{clinic}/uma", *asked, "--format", "json")
    assert code == 0
    found = counted(out)
    assert found["HIPAA:164.502(a)"] == {"refused": 2, "observed": 0}
    assert found["HIPAA:164.312(b)"] == {"refused": 0, "observed": 0}
    told = json.loads(out)["counted"]
    assert (told["tenant"], told["own"], told["unread"]) == (clinic, False, 0)
    assert told["decisions"] >= 2
    code, out = licet(f"{clinic}/uma", *asked)
    assert "2 refused, 0 observed" in out
    assert "decisions of clinic were looked at" in out


def test_before_the_tenant_was_there_is_nothing_to_count(clinic: str, licet: Any) -> None:
    asked = ("policy", "controls", "--evidence", clinic, "--to", "2020-01-01", "--format", "json")
    code, out = licet(f"{clinic}/uma", *asked)
    assert code == 0
    assert json.loads(out)["counted"]["decisions"] == 0
    assert all(counts == {"refused": 0, "observed": 0} for counts in counted(out).values())


def test_who_reads_their_own_decisions_alone_counts_those(clinic: str, licet: Any) -> None:
    asked = ("policy", "controls", "--framework", "hipaa", "--evidence", clinic)
    code, out = licet(f"{clinic}/ana", *asked, "--format", "json")
    assert code == 0
    assert json.loads(out)["counted"]["own"] is True
    assert counted(out)["HIPAA:164.502(a)"]["refused"] == 2
    _, out = licet(f"{clinic}/ci", *asked, "--format", "json")
    assert counted(out)["HIPAA:164.502(a)"]["refused"] == 0
    _, out = licet(f"{clinic}/ci", *asked)
    assert "of your own decisions in clinic" in out


def test_nothing_of_a_tenant_is_counted_for_another(clinic: str, world: Installation, licet: Any) -> None:
    code, _ = licet("northbank/uma", "policy", "controls", "--evidence", clinic)
    assert code == 1
    with world.http("northbank/uma") as http:
        foreign = problem(http.get(f"/v1/enforced/{clinic}"), 403, "denied")
        assert set(foreign["decision"]) == {"id", "decision"}
        groups = http.get("/v1/enforced/northbank").json()["groups"]
    assert not [group for group in groups if "hipaa.use.data" in group["policies"]]


def test_a_look_at_what_was_enforced_is_itself_decided_and_logged(clinic: str, world: Installation) -> None:
    first = world.size(clinic)
    with world.http(f"{clinic}/uma") as http:
        assert http.get(f"/v1/enforced/{clinic}").status_code == 200
    asked = [(r["action"], r["context"].get("own"), r["decision"]) for _, r in world.entries(clinic, first)]
    assert asked == [("decision.read", False, "allow")]
