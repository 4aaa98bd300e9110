"""The symbolic encoding against Cedar's own integration tests: over literals it folds to the recorded answers.

Source: cedar-policy/cedar-integration-tests, a sample of the fuzz-made corpus; see the vectors' SOURCES.md.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cedarpy
import pytest

from licet_engine.workbench.symbolic.encode import Compiler
from licet_engine.workbench.symbolic.errors import UnsupportedError
from licet_engine.workbench.symbolic.literals import LiteralStore
from licet_engine.workbench.symbolic.logic import Logic
from licet_engine.workbench.symbolic.types import RequestEnvironment, Schema

ROOT = Path(__file__).parents[2]
CORPUS = Path(os.environ.get("LICET_VECTORS", ROOT.parent / "shared" / "vectors")) / "cedar" / "corpus-sample.tar.gz"

pytestmark = pytest.mark.skipif(not CORPUS.exists(), reason=f"Cedar's corpus is not at {CORPUS}; set LICET_VECTORS")

TOKEN = re.compile(
    r'(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>[A-Za-z_][A-Za-z0-9_]*(?:::[A-Za-z_][A-Za-z0-9_]*)*)|(?P<sign>[@(){}\[\]<>:;,=?])'
)
ESCAPE = re.compile(r"\\(?:u\{([0-9a-fA-F]+)\}|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
PLAIN = {"n": "\n", "r": "\r", "t": "\t", "0": "\0"}


def unquoted(text: str) -> str:
    return ESCAPE.sub(lambda m: chr(int(m[1] or m[2], 16)) if m[1] or m[2] else PLAIN.get(m[3], m[3]), text[1:-1])


class SchemaText:
    """Reads Cedar's own schema syntax, as far as the corpus goes, into the JSON form that the prover reads."""

    def __init__(self, text: str) -> None:
        self.tokens = [match.group() for match in TOKEN.finditer(text)] + ["<end>"]
        self.at = 0

    def read(self) -> dict[str, Any]:
        spaces: dict[str, Any] = {}
        while self.tokens[self.at] != "<end>":
            self.annotations()
            if self.taken("namespace"):
                name = self.next()
                self.expect("{")
                self.declarations(spaces.setdefault(name, self.empty()), "}")
            else:
                self.declaration(spaces.setdefault("", self.empty()))
        return spaces

    @staticmethod
    def empty() -> dict[str, Any]:
        return {"commonTypes": {}, "entityTypes": {}, "actions": {}}

    def declarations(self, space: dict[str, Any], end: str) -> None:
        while not self.taken(end):
            self.annotations()
            self.declaration(space)

    def declaration(self, space: dict[str, Any]) -> None:
        kind = self.next()
        if kind == "type":
            name = self.next()
            self.expect("=")
            space["commonTypes"][name] = self.type()
        elif kind == "entity":
            names = self.listed(self.next, ",")
            body: dict[str, Any] = {}
            if self.taken("enum"):
                self.expect("[")
                body["enum"] = [unquoted(one) for one in self.listed(self.next, ",")]
                self.expect("]")
            else:
                if self.taken("in"):
                    body["memberOfTypes"] = self.names()
                if self.taken("=") or self.tokens[self.at] == "{":
                    body["shape"] = self.type()
                if self.taken("tags"):
                    body["tags"] = self.type()
            space["entityTypes"] |= dict.fromkeys(names, body)
        elif kind == "action":
            names = self.listed(self.name, ",")
            action: dict[str, Any] = {}
            if self.taken("in"):
                action["memberOf"] = [self.group(one) for one in self.names()]
            if self.taken("appliesTo"):
                action["appliesTo"] = self.applies()
            space["actions"] |= dict.fromkeys(names, action)
        else:
            raise AssertionError(f"{kind} is not known")
        self.expect(";")

    def applies(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self.expect("{")
        while not self.taken("}"):
            key = self.next()
            self.expect(":")
            if key == "context":
                found["context"] = self.type()
            else:
                found[f"{key}Types"] = self.names()
            self.taken(",")
        return found

    def group(self, written: str) -> dict[str, str]:
        kind, _, name = written.rpartition("::")
        return {"id": self.plain(name)} | ({"type": kind} if kind else {})

    def type(self) -> dict[str, Any]:
        if self.taken("{"):
            attributes = {}
            while not self.taken("}"):
                self.annotations()
                name = self.name()
                required = not self.taken("?")
                self.expect(":")
                attributes[name] = {**self.type(), "required": required}
                self.taken(",")
            return {"type": "Record", "attributes": attributes}
        word = self.next()
        if word == "Set" and self.taken("<"):
            element = self.type()
            self.expect(">")
            return {"type": "Set", "element": element}
        return {"type": "EntityOrCommon", "name": word}

    def annotations(self) -> None:
        while self.taken("@"):
            self.next()
            if self.taken("("):
                self.next()
                self.expect(")")

    def names(self) -> list[str]:
        if not self.taken("["):
            return [self.qualified()]
        names = [] if self.tokens[self.at] == "]" else self.listed(self.qualified, ",")
        self.expect("]")
        return names

    def qualified(self) -> str:
        word = self.next()
        while self.tokens[self.at] == ":" and self.tokens[self.at + 1] == ":":
            self.at += 2
            word += "::" + self.next()
        return word

    def listed(self, one: Any, sign: str) -> list[str]:
        found = [one()]
        while self.taken(sign):
            found.append(one())
        return found

    def name(self) -> str:
        return self.plain(self.next())

    @staticmethod
    def plain(word: str) -> str:
        return unquoted(word) if word.startswith('"') else word

    def next(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def taken(self, sign: str) -> bool:
        found = self.tokens[self.at] == sign
        self.at += found
        return found

    def expect(self, sign: str) -> None:
        assert self.taken(sign), (sign, self.tokens[self.at - 5 : self.at + 5])


@dataclass(frozen=True)
class Case:
    name: str
    policies: dict[str, Any]
    schema: Schema
    entities: list[dict[str, Any]]
    requests: list[dict[str, Any]]


def cases() -> Iterator[Case]:
    with tarfile.open(CORPUS) as archive:
        texts = {
            member.name: file.read().decode() for member in archive if (file := archive.extractfile(member)) is not None
        }
    for name, text in sorted(texts.items()):
        if name.endswith(".entities.json") or not name.endswith(".json"):
            continue
        case = json.loads(text)
        policies = json.loads(cedarpy.policies_to_json_str(texts[case["policies"]]))["staticPolicies"]
        schema = Schema.parse(SchemaText(texts[case["schema"]]).read())
        yield Case(name, policies, schema, json.loads(texts[case["entities"]]), case["requests"])


def answer(case: Case, logic: Logic, request: dict[str, Any]) -> tuple[bool, list[str], list[str]]:
    """Decision, determining policies and errors, as the encoding has them; Cedar's own authorizer in three lines."""
    action = (request["action"]["type"], request["action"]["id"])
    context = case.schema.actions[action].context
    environment = RequestEnvironment(request["principal"]["type"], action, request["resource"]["type"], context)
    compiler = Compiler(logic, LiteralStore(logic, environment, request, case.entities))
    satisfied: dict[str, list[str]] = {"permit": [], "forbid": []}
    errors = []
    for name, policy in case.policies.items():
        encoded = compiler.policy(policy)
        assert encoded.satisfied.isBooleanValue(), f"{case.name}: does not fold: {encoded.satisfied}"
        assert encoded.errs.isBooleanValue(), f"{case.name}: does not fold: {encoded.errs}"
        if encoded.satisfied.getBooleanValue():
            satisfied[policy["effect"]].append(name)
        if encoded.errs.getBooleanValue():
            errors.append(name)
    allowed = bool(satisfied["permit"]) and not satisfied["forbid"]
    return allowed, satisfied["permit" if allowed else "forbid"], errors


def test_every_case_folds_to_the_recorded_decision_and_errors() -> None:
    unsupported: Counter[str] = Counter()
    seen: Counter[tuple[bool, bool]] = Counter()
    asked = 0
    for case in cases():
        logic = Logic(case.schema, fold=True)
        for request in case.requests:
            asked += 1
            expected = (request["decision"] == "allow", sorted(request["reason"]), sorted(request["errors"]))
            try:
                allowed, reasons, errors = answer(case, logic, request)
            except UnsupportedError as error:
                unsupported[str(error)] += 1
                continue
            assert (allowed, sorted(reasons), sorted(errors)) == expected, (case.name, request["description"])
            seen[allowed, bool(errors)] += 1
    assert asked == 530 * 8
    assert unsupported == {}, "what is not supported is counted here, by reason"
    assert min(seen[True, False], seen[False, False], seen[False, True]) > 200
