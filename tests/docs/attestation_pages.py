"""The pages of ``docs/attestations`` and their examples: what a page says of fields, what a statement has, and how an example is shown.

Run as a program it makes all examples anew, by one run of a real installation, and shows them on the pages::

    .venv/bin/python tests/docs/attestation_pages.py
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from licet_attestations import archive
from licet_attestations.checkpoint import verifier_key
from licet_attestations.trustroot import TrustRoot
from licet_attestations.vkey import LOG_KIND, VerifierKey
from licet_attestations.witness import Request, Witness

PAGES: Final = Path(__file__).parents[2] / "docs" / "attestations"
EXAMPLES: Final = PAGES / "examples"
TRUST_ROOT, TRUST_ROOT_BEFORE = EXAMPLES / "trust-root.json", EXAMPLES / "trust-root-before.json"
ROLLED_BACK: Final = "rolled-back"


@dataclass(frozen=True)
class Example:
    """An example of a page.

    Attributes:
        page: Its page.
        kind: Of which kind of attestation it is, as ``licet attestation`` has it; empty for what is no entry of the log by itself.
        file: Below the folder of examples.
        chosen: Of several of its kind.
    """

    page: str
    kind: str
    file: str
    chosen: Callable[[dict[str, Any]], bool] = lambda _: True

    @property
    def path(self) -> Path:
        return EXAMPLES / self.file

    @property
    def entry(self) -> Path | None:
        """The entry of the log that names it."""
        return self.path.with_name(self.path.name.replace(".dsse.", ".entry.")) if self.kind else None

    def statement(self) -> dict[str, Any]:
        return statement_of(self.path.read_bytes())


def _logged(page: str, kind: str = "", file: str = "", chosen: Callable[[dict[str, Any]], bool] = bool) -> Example:
    return Example(page, kind or page, f"{file or page}.dsse.json", chosen)


ALL: Final = (
    _logged("approval"),
    _logged("check", "test-result", chosen=lambda p: p.get("passedTests") == ["bias"]),
    _logged("decision"),
    _logged("deletion"),
    _logged("deployment", chosen=lambda p: p["event"] == "deployed"),
    _logged("deployment", file="roll-back", chosen=lambda p: p["event"] == ROLLED_BACK and "by" in p["cause"]),
    _logged("deployment", file="alarm", chosen=lambda p: p["event"] == ROLLED_BACK and "by" not in p["cause"]),
    _logged("examination", "test-result", chosen=lambda p: "publication" in p),
    _logged("examination", "test-result", "first-policies", chosen=lambda p: p.get("passedTests") == ["proofs"]),
    _logged("export"),
    _logged("isolation"),
    _logged("key-compromise"),
    _logged("key-rotation"),
    Example("model", "", "model/model.sig"),
    _logged("model-bom"),
    _logged("policy"),
    _logged("promotion", chosen=lambda p: p["licet_event"] == "promoted"),
    _logged("promotion", file="stage-roll-back", chosen=lambda p: p["licet_event"] == ROLLED_BACK),
    _logged("traffic", chosen=lambda p: p["event"] == ROLLED_BACK),
    _logged("training", chosen=lambda p: "run-1" in p["buildDefinition"]["externalParameters"]["run"]),
    _logged("warrant"),
)


def statement_of(data: bytes) -> dict[str, Any]:
    """The statement in an envelope, or in a Sigstore bundle."""
    envelope = json.loads(data)
    found: dict[str, Any] = json.loads(base64.b64decode(envelope.get("dsseEnvelope", envelope)["payload"]))
    return found


# --- fields -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """A row of a page's table."""

    types: frozenset[str]
    may_be_absent: bool


def fields(page: str) -> dict[str, Field]:
    """The rows of the table of fields, by path."""
    part = page.partition("## Fields")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| ([a-z ]+) \| (.+) \|$", part, re.MULTILINE)
    return {path: Field(frozenset(types.split(" or ")), "absent" in told) for path, types, told in rows}


_TYPES: Final = {dict: "object", list: "list", str: "text", int: "integer", bool: "boolean", type(None): "null"}


def walk(value: Any, path: str = "") -> Iterable[tuple[str, str]]:
    """Every path in a value, with the type that stands there."""
    if path:
        yield path, _TYPES[type(value)]
    if isinstance(value, dict):
        for name, below in value.items():
            yield from walk(below, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for below in value:
            yield from walk(below, f"{path}[]")


def _parts(path: str) -> list[str]:
    return path.replace("[]", ".[]").split(".")


def undocumented(page: str, predicates: Iterable[dict[str, Any]]) -> set[str]:
    """What of predicates the table of a page does not say, or says otherwise."""
    table = fields(page)
    return {
        f"{path}: {type_}"
        for predicate in predicates
        for path, type_ in walk(predicate)
        if not any(_covers(row, field, path, type_) for row, field in table.items())
    }


def _covers(row: str, field: Field, path: str, type_: str) -> bool:
    ours, theirs = _parts(row), _parts(path)
    if ours[-1] == "*" and len(theirs) >= len(ours) and theirs[: len(ours) - 1] == ours[:-1]:
        return "any" in field.types or type_ in field.types
    # What has rows of its own for its members needs none for itself.
    if len(ours) > len(theirs) and ours[: len(theirs)] == theirs:
        return (type_ == "list") == (ours[len(theirs)] == "[]") and type_ in {"object", "list"}
    return ours == theirs and bool(field.types & {type_, "any"})


def unseen(page: str, predicates: Iterable[dict[str, Any]]) -> set[str]:
    """Rows of a page that are in none of its examples, though the page does not say that they may be absent."""
    paths = {path for predicate in predicates for path, _ in walk(predicate)}
    return {
        row
        for row, field in fields(page).items()
        if not field.may_be_absent and not any(_is_at(_parts(row), _parts(path)) for path in paths)
    }


def _is_at(row: list[str], path: list[str]) -> bool:
    if row[-1] == "*":
        return len(path) >= len(row) and path[: len(row) - 1] == row[:-1]
    return row == path


# --- examples ---------------------------------------------------------------------------------------------------------

_MOST_CHARS, _MOST_ITEMS = 100, 3
_SECTION = re.compile(r"(?<=^## Example\n\n).*?(?=\n## )", re.MULTILINE | re.DOTALL)


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _MOST_CHARS:
        return value[:_MOST_CHARS] + "…"
    if isinstance(value, list):
        return [_cut(one) for one in value[:_MOST_ITEMS]] + (["…"] if len(value) > _MOST_ITEMS else [])
    if isinstance(value, dict):
        return {name: _cut(one) for name, one in value.items()}
    return value


def shown(name: str) -> str:
    """How a page shows its examples."""
    told = []
    for example in ALL:
        if example.page != name:
            continue
        files = [example.file, *([f"{example.file.removesuffix('.dsse.json')}.entry.json"] if example.kind else [])]
        links = " and the log entry that names it, ".join(f"[{file}](examples/{file})" for file in files)
        text = json.dumps(_cut(example.statement()), indent=2, ensure_ascii=False)
        told.append(f"{links}. The statement in it, with long texts and lists cut:\n\n```json\n{text}\n```\n")
    return "\n".join(told)


def shown_on(page: str) -> str:
    """The part of a page with its examples."""
    (found,) = _SECTION.findall(page)
    return str(found)


def refresh() -> None:
    """Show the examples on the pages."""
    for name in sorted({example.page for example in ALL}):
        path = PAGES / f"{name}.md"
        path.write_text(_SECTION.sub(lambda _, name=name: shown(name), path.read_text("utf-8")), "utf-8")


# --- making them ------------------------------------------------------------------------------------------------------


def _make(folder: Path) -> None:
    sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "integration")]
    from service_world import Installation  # noqa: PLC0415  # The line above finds it.

    import attested_run  # noqa: PLC0415  # As above.

    world = Installation(prove_every_s=1)
    try:
        world.start()
        run = attested_run.perform(world, folder)
        attested_run.rotate(run)
        attested_run.export(run, folder / "exported", 50)
        shutil.copy(run.trust_root, folder / "trust-root.json")
    finally:
        world.stop()


def _keep(folder: Path) -> None:
    """Take over what the run left, one of each kind."""
    shutil.rmtree(EXAMPLES, ignore_errors=True)
    EXAMPLES.mkdir()
    shutil.copytree(folder / "model", EXAMPLES / "model")
    for path in (TRUST_ROOT, TRUST_ROOT_BEFORE):
        shutil.copy(folder / path.name, path)
    with zipfile.ZipFile(folder / "northbank.evidence.zip") as packed:
        note = packed.read(archive.CHECKPOINT).decode()
    (EXAMPLES / "checkpoint.txt").write_text(note + _cosigned(note, folder / "witness"))
    for example in ALL:
        if not example.kind:
            continue
        found = sorted((folder / "exported").glob(f"{example.kind}-*.dsse.json"))
        path = next(path for path in found if example.chosen(statement_of(path.read_bytes())["predicate"]))
        for suffix in ("dsse.json", "entry.json", "leaf", "tlog-proof", "cdx.json"):
            one = path.with_name(path.name.replace("dsse.json", suffix))
            if one.exists():
                shutil.copy(one, EXAMPLES / example.path.name.replace("dsse.json", suffix))


def _cosigned(note: str, folder: Path) -> str:
    """What a witness answers that sees this log for the first time; its key is kept beside."""
    trust = TrustRoot.from_json(TRUST_ROOT.read_bytes())
    (log,) = trust.keys("log")
    key = Witness.create(folder, "witness.example")
    (EXAMPLES / "witness.vkey").write_text(key.to_text() + "\n")
    named = VerifierKey.from_text(verifier_key(trust.origin("northbank"), log), LOG_KIND)
    witness = Witness(folder, [named], lambda: int(time.time()))
    try:
        reply = witness.add_checkpoint(Request(0, (), note).to_bytes())
    finally:
        witness.close()
    assert reply.status == 200, reply  # OK.
    return reply.body


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="lx-") as made:
        _make(Path(made))
        _keep(Path(made))
    refresh()
