"""The jobs of docs/ci.md: each is read as its CI would, and its steps are run, against a real service and a real issuer of ID tokens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from licet_engine.workbench.scaffold import write_project

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from service_world import Installation, poll
from test_workload import Issuer

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "ci.md").read_text("utf-8")
JOBS = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]
INSTALL = "pip install 'licet[client,prove]'"
GITHUB, GITLAB = JOBS


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.close()


@pytest.fixture(scope="module")
def service(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A tenant whose administrator has run the page's commands, with the test's issuer for those of the world."""
    installation = Installation(outbound_networks="127.0.0.0/8")
    try:
        installation.start()
        installation.people("northbank", "us", packs=[])
        token = tmp_path_factory.mktemp("admin") / "token"
        token.touch(0o600)
        token.write_text(installation.tokens["northbank/admin"])
        for commands in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
            said = re.sub(r"https://\S+", f"{issuer.url} --unsafe-http", commands)
            environment = {"LICET_URL": installation.url, "LICET_TOKEN_FILE": str(token)}
            ended = shell(said, token.parent, environment)
            assert ended.returncode == 0, ended.stdout + ended.stderr
        admin = installation.client("northbank/admin")
        poll("the keys to be fetched", lambda: all(row["keys"] for row in admin.list("northbank", "issuers")), 60)
        yield installation
    finally:
        installation.stop()


def shell(commands: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """As the shells of both CIs run commands: ended by the first that fails."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["/bin/bash", "-eo", "pipefail", "-c", commands],
        cwd=folder,
        env={"PATH": path, "HOME": str(folder), "LANG": "C.UTF-8"} | environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of policies, with main as it was before this change."""
    folder = tmp_path / "work" / "repository"
    folder.parent.mkdir()
    write_project(folder)
    identity = {f"GIT_{who}_{what}": "a@b.example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    commands = (
        "git init -q -b main && git add -A && git commit -qm first && git update-ref refs/remotes/origin/main HEAD"
    )
    ended = shell(commands, folder, identity)
    assert ended.returncode == 0, ended.stderr
    return folder


def github(job: str, repository: Path, event: str, environment: dict[str, str]) -> list[str]:
    """Run a job as GitHub would; return what its commands showed, and the summary."""
    runner = repository.parent / "runner"
    runner.mkdir(exist_ok=True)
    set_by_steps, summary = runner / "env", runner / "summary"
    set_by_steps.touch()
    summary.touch()
    told = GITHUB["jobs"][job]
    shown = []
    for step in told["steps"]:
        if "uses" in step:
            assert step["uses"] == "actions/checkout@v4"
            continue
        if step["run"] == INSTALL or ("if" in step and event not in step["if"]):
            continue
        given = {"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_ENV": str(set_by_steps), "RUNNER_TEMP": str(runner)}
        given |= dict(line.split("=", 1) for line in set_by_steps.read_text().splitlines())
        ended = shell(step["run"], repository, told.get("env", {}) | environment | given)
        assert ended.returncode == 0, (step, ended.stdout, ended.stderr)
        shown.append(ended.stdout + ended.stderr)
    return [*shown, summary.read_text()]


def test_the_jobs_ask_for_no_more_than_they_need() -> None:
    # ``on`` is a truth in YAML 1.1; GitHub reads it as the word that it is.
    assert set(GITHUB[True]) == {"pull_request", "push"}
    assert GITHUB["permissions"] == {"contents": "read"}
    assert "permissions" not in GITHUB["jobs"]["check"]
    publish = GITHUB["jobs"]["publish"]
    assert publish["permissions"] == {"contents": "read", "id-token": "write"}
    assert (publish["needs"], publish["if"]) == ("check", "github.event_name == 'push'")
    assert "secrets." not in PAGE
    # Without it, GitHub's shell has no pipefail, and a publication that was refused would end well.
    assert GITHUB["defaults"] == {"run": {"shell": "bash"}}
    assert GITLAB["publish"]["id_tokens"] == {"LICET_ID_TOKEN": {"aud": "licet:northbank/gitlab"}}


def test_a_pull_request_is_checked_and_says_what_it_changes(repository: Path) -> None:
    change(repository)
    shown = github("check", repository, "pull_request", {})
    assert "looser" in shown[-1] or "stricter" in shown[-1], shown[-1]


def test_a_pull_request_that_breaks_a_test_fails_and_says_which(repository: Path) -> None:
    file = next((repository / "tests").glob("*.yaml"))
    file.write_text(file.read_text().replace("expect: allow", "expect: deny", 1))
    with pytest.raises(AssertionError, match=r"expected deny|1[0-9]* of [0-9]+ tests pass"):
        github("check", repository, "pull_request", {})


def change(repository: Path) -> None:
    """A policy more, and less of coverage asked for."""
    more = '@id("desk.more")\n@title("Nobody")\n@advice("No.")\n@severity("low")\n@owner("desk")\n'
    more += 'forbid (\n  principal is Person,\n  action == Action::"run.log",\n  resource is Run\n);\n'
    (repository / "policies" / "more.cedar").write_text(more)
    configuration = repository / "licet.toml"
    configuration.write_text(re.sub(r"threshold = \d+", "threshold = 50", configuration.read_text()))


def test_what_was_merged_is_published_by_the_job_and_activated_by_nobody_of_it(
    service: Installation, issuer: Issuer, repository: Path
) -> None:
    environment = {
        "LICET_URL": service.url,
        "ACTIONS_ID_TOKEN_REQUEST_URL": f"{issuer.url}/id-token?v=1",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "runner",
    }
    shown = github("publish", repository, "push", environment)
    (bundle,) = [
        row for row in service.client("northbank/sam").list("northbank", "bundles") if row["state"] != "active"
    ]
    assert f"licet policy activate northbank/{bundle['digest_hex'][:8]}" in shown[-1], shown
    assert not service.client("northbank/ana").act("policy.activate", f"northbank/{bundle['digest_hex'][:16]}").allowed
    file = repository.parent / "runner" / "licet-token"
    assert file.read_text().strip() not in "".join(shown)


def test_a_job_whose_publication_is_refused_fails(service: Installation, issuer: Issuer, repository: Path) -> None:
    file = next((repository / "tests").glob("*.yaml"))
    file.write_text(file.read_text().replace("expect: allow", "expect: deny", 1))
    environment = {
        "LICET_URL": service.url,
        "ACTIONS_ID_TOKEN_REQUEST_URL": f"{issuer.url}/id-token?v=1",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "runner",
    }
    with pytest.raises(AssertionError, match="refused"):
        github("publish", repository, "push", environment)


def test_the_jobs_of_gitlab_check_and_publish(service: Installation, issuer: Issuer, repository: Path) -> None:
    change(repository)
    assert GITLAB["default"]["before_script"] == [INSTALL]
    Path(f"{repository}.tmp").mkdir()
    given = {"CI_PROJECT_DIR": str(repository)}
    checked = shell("\n".join(GITLAB["check"]["script"]), repository, given)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for name in GITLAB["check"]["artifacts"]["reports"]["junit"]:
        assert (repository / name).read_text().startswith("<?xml")
    variables = {
        name: value.replace("$CI_PROJECT_DIR", str(repository))
        for name, value in GITLAB["publish"]["variables"].items()
    }
    claims = {"project_path": "northbank/policies", "ref": "main", "ref_protected": "true"}
    token = issuer.token(**claims, aud=GITLAB["publish"]["id_tokens"]["LICET_ID_TOKEN"]["aud"])
    given |= variables | {"LICET_URL": service.url, "LICET_ID_TOKEN": token}
    published = shell("\n".join(GITLAB["publish"]["script"]), repository, given)
    assert published.returncode == 0, published.stdout + published.stderr
    assert re.search(r"licet policy activate northbank/[0-9a-f]{8}\b", published.stdout)
