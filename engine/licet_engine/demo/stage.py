"""What the acts of the demo share: the people, the display, and the holding of outcomes to what they must be."""

from __future__ import annotations

import json
import os
import socket
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from licet_engine.client import Answer, Explanation, LicetClient, LicetClientError, Operation
from licet_engine.serve import Supervisor
from licet_engine.settings import Settings

DATA: Final = Path(__file__).parents[3] / "examples" / "boston-hmda" / "hmda.csv"
"""The example data of the repository: an installed wheel comes without it."""
PEOPLE: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "northbank/ana": ("person", ("data-scientist",)),
    "northbank/ravi": ("person", ("model-risk",)),
    "northbank/mei": ("person", ("model-risk",)),
    "northbank/cora": ("person", ("compliance",)),
    "northbank/sam": ("person", ("security-engineer",)),
    "northbank/ci": ("service", ("pipeline",)),
    "lakeside/lena": ("person", ("data-scientist", "compliance")),
}
"""Who plays: the service account's owner is ana."""

_WAIT_S: Final = 120.0
_WIDEST: Final = 80
_LABEL_CHARS: Final = 9


class Unexpected(Exception):
    """An outcome was not the one that it must be; the story ends."""


@dataclass(frozen=True, slots=True)
class _Scene:
    act: str
    what: str
    outcome: str
    expected: str
    is_so: bool
    took_s: float


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stage:
    """Where the story is played.

    Args:
        folder: Of the installation.

    Attributes:
        notes: What one act leaves for another.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.console = Console(highlight=False)
        self.notes: dict[str, Any] = {}
        self._clients: dict[str, LicetClient] = {}
        self._scenes: list[_Scene] = []
        self._failed: list[str] = []
        self._act = ""
        self._title_of: dict[str, str] = {}
        self._settings: Settings | None = None
        self._supervisor: Supervisor | None = None

    # --- the house -------------------------------------------------------------------------------------------------

    def opened(self, settings: Settings, supervisor: Supervisor) -> None:
        """The service runs: let in the operator, who lets in the tenants, who let in their people."""
        self._settings, self._supervisor = settings, supervisor
        operator = LicetClient(supervisor.url, (settings.data / "operator.token").read_text("ascii").strip())
        for tenant, region in (("northbank", "us"), ("lakeside", "eu")):
            packs = [
                {"name": "sr-11-7", "mode": "enforce", "parameters": {}},
                {"name": "residency", "mode": "enforce", "parameters": {"regions": [region]}},
            ]
            made = self.must(
                operator.act("tenant.create", tenant, {"region": region, "administrator": "admin", "packs": packs})
            )
            self._let_in(f"{tenant}/admin", made.result["token"])
        for name, (kind, roles) in PEOPLE.items():
            admin = self.as_(name.partition("/")[0] + "/admin")
            body: dict[str, Any] = {"kind": kind, "roles": list(roles)}
            if kind == "service":
                body["owner"] = "ana"
            self.must(admin.act("person.administer", name, body))
            self._let_in(name, self.must(admin.act("token.issue", name, {"label": "demo"})).result["token"])
        self.must(
            self.as_("northbank/admin").act(
                "tenant.administer",
                "northbank",
                {
                    "environments": [{"name": "us-east", "region": "us"}, {"name": "eu-west", "region": "eu"}],
                    "budgets": {"training": 100},
                },
            )
        )
        self.tell(f"tenants northbank (us) and lakeside (eu), {len(PEOPLE)} principals; API at {supervisor.url}")

    def _let_in(self, name: str, token: str) -> None:
        path = self.folder / "credentials" / f"{name.replace('/', '.')}.token"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token + "\n")
        self._clients[name] = LicetClient(self.supervisor.url, token, serving_url=self.supervisor.router_url)

    @property
    def supervisor(self) -> Supervisor:
        """Who keeps the processes alive."""
        if self._supervisor is None:
            raise Unexpected("the service does not run yet")
        return self._supervisor

    @property
    def settings(self) -> Settings:
        """Of the installation."""
        if self._settings is None:
            raise Unexpected("the service does not run yet")
        return self._settings

    def as_(self, name: str) -> LicetClient:
        """The client of a principal."""
        return self._clients[name]

    # --- outcomes --------------------------------------------------------------------------------------------------

    def must(self, answer: Answer) -> Answer:
        """What has to be allowed for the story to go on, and is not part of it."""
        if not answer.allowed:
            raise Unexpected(f"{answer.action} on {answer.resource} was denied: {answer.sentence()}")
        return answer

    def ask(self, what: str, ask: Callable[[], Answer], *, allowed: bool, by: tuple[str, ...] = ()) -> Answer:
        """Ask for something and hold the decision to what it must be.

        Args:
            what: In words.
            ask: Asks.
            allowed: What the decision must be.
            by: Policies that must be among those that decided.
        """
        began_s = time.monotonic()
        self._line("asked", what)
        try:
            answer = ask()
        except LicetClientError as error:
            raise Unexpected(f"{what}: {error}") from error
        word = "[green]allow[/]" if answer.allowed else "[red]deny[/]"
        self.console.print(f"   [bold]decided[/]  {word}  [dim]decision {answer.decision_id}[/]")
        for policy in answer.policies:
            self._line("because", f"{policy.id}: {policy.title}")
        decided = {policy.id for policy in answer.policies}
        missing = [policy for policy in by if policy not in decided]
        self.check(
            what,
            answer.allowed == allowed and not missing,
            "allow" if answer.allowed else "deny",
            "allow" if allowed else "deny",
            began_s,
        )
        if missing:
            raise Unexpected(f"{what}: {', '.join(missing)} should have decided, not {', '.join(sorted(decided))}")
        return answer

    def check(self, what: str, is_so: bool, outcome: str, expected: str, began_s: float) -> None:  # noqa: FBT001 - a line of the table.
        """Put an outcome into the table; one that is not as it must be ends the story."""
        self._scenes.append(_Scene(self._act, what, outcome, expected, is_so, time.monotonic() - began_s))
        if not is_so:
            raise Unexpected(f"{what}: expected {expected}, found {outcome}")

    def holds(self, what: str, found: object, expected: object) -> None:
        """Hold a value to what it must be."""
        began_s = time.monotonic()
        self.tell(f"{what}: {in_words(found)}")
        self.check(what, found == expected, in_words(found), in_words(expected), began_s)

    def done(self, name: str, answer: Answer, *, state: str = "done") -> Operation:
        """Wait for the operation that an answer accepted, and hold its end to what it must be."""
        began_s = time.monotonic()
        if answer.operation is None:
            raise Unexpected(f"{answer.action} accepted no operation")
        client = self.as_(name)
        what = f"{answer.action} on {answer.resource} is performed"
        with self.console.status(f"   {what}") as status:
            ended = client.wait(
                answer.operation,
                timeout_s=_WAIT_S,
                on_progress=lambda now: status.update(f"   {what}: {_progress(now)}"),
            )
        told = "" if ended.error is None else f": {ended.error['message']}"
        attempts = "" if ended.attempt == 1 else f", attempt {ended.attempt}"
        self._line("ran", f"{ended.action}: {ended.state}{attempts}{told}")
        for name_, digest in _attested(ended):
            self.console.print(f"   [bold]attested[/] {escape(name_)} [dim]{digest}[/]")
        self.check(what, ended.state == state, ended.state, state, began_s)
        return ended

    def explain(self, name: str, answer: Answer) -> Explanation:
        """Have a decision explained, and show what failed with its values and the path to yes."""
        tenant = name.partition("/")[0]
        explanation = self.as_(name).decision.explain(tenant, answer.decision_id)
        for report in explanation.explanation["deciding"]:
            for clause in report["clauses"]:
                for part in clause["parts"]:
                    if clause["kind"] == "unless" and part["outcome"] == "false":
                        values = "; ".join(value["text"] for value in part["values"])
                        line = f"{report['id']}: {part['source']} is {part['outcome']} ({values})"
                        self._line("failed", line)
        if explanation.path:
            steps = explanation.path.get("steps") or ()
            self.console.print("   [bold]path to yes[/]")
            if not steps:
                self._hung(" " * 5, str(explanation.path["message"]))
            for number, step in enumerate(steps, start=1):
                self._hung(f"{number:>6}. ", str(step["describe"]))
        return explanation

    # --- the display -----------------------------------------------------------------------------------------------

    def heading(self, text: str) -> None:
        """Begin an act."""
        self._act = text.partition(".")[0] if text[:1].isdigit() else ""
        self._title_of[self._act] = text.removeprefix(f"{self._act}.").strip().rstrip(".")
        self.console.print(f"\n[bold cyan]{escape(text.rstrip('.'))}[/]")

    def tell(self, text: str) -> None:
        """A line of the story."""
        self._hung("   - " if text.startswith("- ") else "   ", text.removeprefix("- "))

    def _line(self, label: str, text: str) -> None:
        """A line of the story with what it is."""
        self._hung(f"   {label:<{_LABEL_CHARS}}", text, label=label)

    def _hung(self, head: str, text: str, *, label: str = "") -> None:
        """Text behind a head, wrapped under itself."""
        lines = textwrap.wrap(
            text,
            width=min(self.console.width, _WIDEST),
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for number, line in enumerate(lines or [head]):
            told = escape(line)
            if label and number == 0:
                told = told.replace(label, f"[bold]{label}[/]", 1)
            self.console.print(told, soft_wrap=True)

    def fail(self, text: str) -> None:
        """Something is not as it must be."""
        self._failed.append(text)
        self.console.print(f"[bold red]   {escape(text)}[/]", soft_wrap=True)

    def curtain(self, took_s: float) -> int:
        """Show what happened, act by act, and every outcome that is not as it must be; return the exit status."""
        table = Table(
            title="What was asked, and what came of it", title_justify="left", width=min(self.console.width, _WIDEST)
        )
        for column in ("act", "what", "outcomes", "s"):
            table.add_column(column, justify="left" if column == "what" else "right", overflow="fold")
        for act in dict.fromkeys(scene.act for scene in self._scenes):
            scenes = [scene for scene in self._scenes if scene.act == act]
            other = sum(not scene.is_so for scene in scenes)
            table.add_row(
                act,
                escape(self._title_of.get(act, "")),
                f"[red]{len(scenes)}, {other} not as expected[/]" if other else str(len(scenes)),
                f"{sum(scene.took_s for scene in scenes):.1f}",
            )
        self.console.print()
        self.console.print(table)
        for scene in self._scenes:
            if not scene.is_so:
                self._line("not so", f"{scene.what}: expected {scene.expected}, found {scene.outcome}")
        if self._failed:
            self.console.print(f"[bold red]The story ended early after {took_s:.0f} s: {escape(self._failed[0])}[/]")
            self.console.print(f"See {self.folder}/service.log.")
            return 1
        count = len(self._scenes)
        self.console.print(f"[bold green]All {count} outcomes were the expected ones, in {took_s:.0f} s.[/]")
        licet = Path(".venv", "bin", "licet") if Path(".venv", "bin", "licet").exists() else Path("licet")
        self.console.print(
            f"Go on from here:\n"
            f"   {licet} verify {self.folder}/northbank.evidence.zip --trust-root {self.folder}/trust-root.json\n"
            f"   {licet} serve --data {self.folder}\n"
            f"and in a second terminal:\n"
            f"   export LICET_TOKEN_FILE={self.folder}/credentials/northbank.sam.token\n"
            f"   {licet} decision list northbank --denied",
            soft_wrap=True,
        )
        return 0


def in_words(value: object) -> str:
    """A value as people write it."""
    match value:
        case bool():
            return "yes" if value else "no"
        case None:
            return "nothing"
        case list() | tuple() | set() | frozenset():
            return ", ".join(map(in_words, value)) or "none"
    return str(value)


def _progress(now: Operation) -> str:
    if not now.progress:
        return now.state
    figures = ", ".join(f"{name} {value / 1e6:.4f}" for name, value in now.progress.get("values_micro", {}).items())
    return f"attempt {now.attempt}, epoch {now.progress.get('epoch', 0)} {figures}"


def _attested(ended: Operation) -> list[tuple[str, str]]:
    result = ended.result or {}
    found = [(f"{part['kind']} check", part["attestation"]) for part in result.get("results", ())]
    if "attestation" in result:
        found.append((ended.action, result["attestation"]))
    return [(name, digest[:16]) for name, digest in found]


def strip_ids(body: Mapping[str, Any]) -> str:
    """A denial without the number that every decision has."""
    told = json.loads(json.dumps(body))
    told.get("decision", {}).pop("id", None)
    return json.dumps(told, sort_keys=True)
