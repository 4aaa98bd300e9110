"""The walk-through of the first tenant leads where it says: its commands, as they stand there, against a fresh service."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from licet_engine.demo.stage import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "first-tenant.md").read_text("utf-8")
LONGEST_S = 300


def script() -> str:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    # The page puts the repository's programs on the path; here they are those that run the tests.
    return "set -euo pipefail\n" + "\n".join(blocks).replace('"$PWD/.venv/bin:', f'"{Path(sys.executable).parent}:')


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder like that of the repository, with a service that was started as the page says, on a port of its own."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LICET_")}
    environment["LICET_URL"] = f"http://127.0.0.1:{port}"
    environment["LICET_ROUTER_PORT"] = str(free_port())
    command = [sys.executable, "-m", "licet_engine.cli", "serve", "--init", "--port", str(port)]
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
        )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "licet serves" in line:
                break
        else:
            pytest.fail(f"the service did not start:\n{(tmp_path / 'serve.log').read_text()}")
        yield tmp_path, environment
    finally:
        process.send_signal(signal.SIGTERM)
        process.stdout.close()
        assert process.wait(60) == 0


def test_the_walk_through_ends_with_a_promoted_model_and_evidence_that_verifies(
    folder: tuple[Path, dict[str, str]],
) -> None:
    cwd, environment = folder
    ran = subprocess.run(
        [shutil.which("bash") or "/bin/bash", "-c", script()],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    told = ran.stdout + ran.stderr
    assert ran.returncode == 0, told
    # The page says that the question before checks and approvals is a no, and how it ends.
    assert ran.stdout.count("exit code ") == 1, told
    assert "exit code 1\n" in ran.stdout, told
    assert re.search(r"^ +stage +prod$", ran.stdout, re.MULTILINE), told
    assert (cwd / "acme.evidence.zip").is_file()
