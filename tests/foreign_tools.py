"""Verifiers that are not ours, as an auditor has them: scripts of ``examples/verify-without-us`` over other people's libraries.

What cannot be had is told, and the test is skipped; where ``FOREIGN_TOOLS`` names the tool (``go``, ``npm``), as in CI, that is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, NoReturn

import pytest

EXAMPLES: Final = Path(__file__).parents[1] / "examples" / "verify-without-us"
GO_PATH: Final = Path("/usr/share/gocode")
_WITHIN_S: Final = 120


def missing(tool: str, reason: str) -> NoReturn:
    """Tell that a tool cannot be had."""
    if tool in os.environ.get("FOREIGN_TOOLS", "").split():
        pytest.fail(f"{reason}, and FOREIGN_TOOLS says that {tool} is here")
    pytest.skip(f"{reason}; FOREIGN_TOOLS={tool} makes a failure of this")


def found(tool: str, program: str, package: str) -> str:
    """Where a program is."""
    path = shutil.which(program)
    return path if path is not None else missing(tool, f"{program} is not installed (Debian: {package})")


def ran(*command: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=_WITHIN_S,
        check=False,
    )


def python_tool(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script of the examples."""
    return ran(sys.executable, EXAMPLES / script, *arguments)


def installed_npm(folder: Path) -> Path:
    """Sigstore's library, installed as the lock file pins it; the folder to run its script in."""
    npm, node = found("npm", "npm", "npm"), found("npm", "node", "nodejs")
    for name in ("package.json", "package-lock.json", "sigstore_verify.mjs"):
        shutil.copy(EXAMPLES / name, folder / name)
    done = ran(
        npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder, npm_config_cache=str(folder / "cache")
    )
    if done.returncode:
        missing("npm", f"@sigstore/verify cannot be installed: {done.stderr[-500:]}")
    # It is made for newer versions of Node than some systems have.
    done = ran(node, "-e", "require('@sigstore/verify')", cwd=folder)
    if done.returncode:
        missing("npm", f"@sigstore/verify does not run on this Node: {done.stderr[-500:]}")
    return folder


def go_with_tlog() -> str:
    """Go, with ``golang.org/x/mod`` as Debian packages it."""
    go = found("go", "go", "golang-go")
    if not (GO_PATH / "src" / "golang.org" / "x" / "mod" / "sumdb" / "tlog").is_dir():
        missing("go", "golang.org/x/mod is not installed (Debian: golang-golang-x-mod-dev)")
    return go


def built_go(folder: Path) -> Path:
    """The verifier over ``golang.org/x/mod/sumdb``, built from Debian's packages alone."""
    go, target = go_with_tlog(), folder / "tlogverify"
    offline = {"GO111MODULE": "off", "GOPATH": str(GO_PATH), "GOFLAGS": "", "GOCACHE": str(folder / "go-cache")}
    done = ran(go, "build", "-o", target, EXAMPLES / "tlogverify" / "main.go", **offline)
    assert done.returncode == 0, done.stderr
    return target
