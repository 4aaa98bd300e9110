"""A policy project: ``licet.toml``, and the policies, tests, invariants and schema extensions that lie beside it.

Rules kept here:

- ``licet.toml`` is read strictly: an unknown key, a value of another type or out of bounds is an error that names the file,
  the line where it can be told, the key, and what to do.
- What a project's bundle is, is composed by ``licet_policies`` as it is for a tenant: the same guardrails, roles and packs.
- A project is read once; what is done with it works on what was read.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from licet_engine.workbench.errors import ProjectError
from licet_engine.workbench.files import (
    CONFIG_FILE,
    FOLDERS,
    INVARIANT_FOLDER,
    POLICY_FOLDER,
    SCHEMA_FOLDER,
    list_files,
    project_root,
    read_text,
)
from licet_engine.workbench.places import line_of
from licet_engine.workbench.spans import PolicyText, SourceFile, read_policies
from licet_policies import LicetPoliciesError, PackChoice, compose, pack
from licet_policies.errors import PackError
from licet_policies.extension import Extension, merge, read_extension
from licet_policies.schema import load_schema

_MAX_CONFIG_BYTES: Final = 64 << 10
_MAX_WORDS: Final = 100
_INTEGER_BITS: Final = 53

Word = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9][a-z0-9-]*$")]
Reason = Annotated[
    str,
    Field(max_length=500, description="Why; a rule is not switched off without a reason."),
]
Whole = Annotated[int, Field(gt=-(1 << _INTEGER_BITS), lt=1 << _INTEGER_BITS)]


class Strict(BaseModel):
    """A part of a file: nothing unknown, nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)


class PackSettings(Strict):
    """A pack of the bundle."""

    mode: Literal["enforce", "observe"] = Field(
        default="enforce", description="Whether it forbids, or only records what it would have forbidden."
    )
    parameters: dict[str, Whole | Annotated[list[str], Field(max_length=_MAX_WORDS)]] = Field(
        default_factory=dict,
        max_length=_MAX_WORDS,
        description="Those that differ from the pack's defaults; `licet policy packs NAME` shows what there is.",
    )


class SchemaSettings(Strict):
    """Entity types and actions of the tenant's own."""

    extensions: list[Annotated[str, Field(min_length=1, max_length=255)]] = Field(
        default_factory=list,
        max_length=8,
        description="Files, such as schema/vendors.cedarschema: Cedar schema text, or JSON where the name ends in .json.",
    )


class LintSettings(Strict):
    """What lint does not look for."""

    off: dict[str, Reason] = Field(
        default_factory=dict, max_length=_MAX_WORDS, description="Rules that are switched off, each with the reason."
    )


class CoverageSettings(Strict):
    """What tests must cover."""

    threshold: int = Field(
        default=0,
        ge=0,
        le=100,
        description="The least share of policies, conjuncts and outcomes that tests reach, in percent.",
    )


class Config(Strict):
    """``licet.toml``: what a policy project is."""

    version: Literal[1] = Field(description="Of this format.")
    packs: dict[Word, PackSettings] = Field(
        default_factory=dict, max_length=32, description="The packs in the bundle, by name."
    )
    schema_: SchemaSettings = Field(
        default_factory=SchemaSettings, alias="schema", description="Entity types and actions of the tenant's own."
    )
    lint: LintSettings = Field(default_factory=LintSettings, description="What lint does not look for.")
    coverage: CoverageSettings = Field(default_factory=CoverageSettings, description="What tests must cover.")


@dataclass(frozen=True)
class Project:
    """A project as read.

    Attributes:
        root: Its folder, resolved.
        config: What ``licet.toml`` says.
        config_file: ``licet.toml`` itself.
        policies: Its own policies' files, by name.
        invariants: Its invariants' files, by name.
        extension: What it adds to the schema, or None.
    """

    root: Path
    config: Config
    config_file: SourceFile
    policies: tuple[SourceFile, ...]
    invariants: tuple[SourceFile, ...]
    extension: Extension | None = None
    _texts: dict[str, list[PolicyText]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def schema(self) -> Mapping[str, Any]:
        """The schema in Cedar's JSON format, with what the project adds to it."""
        return load_schema() if self.extension is None else merge(self.extension)

    @property
    def packs(self) -> tuple[PackChoice, ...]:
        """The packs that it chooses."""
        return tuple(
            PackChoice(name, chosen.mode, dict(chosen.parameters)) for name, chosen in self.config.packs.items()
        )

    @cached_property
    def own_text(self) -> str:
        """All its own policies, as they are published: file after file by name."""
        return "\n".join(file.text for file in self.policies)

    def policy_texts(self) -> list[PolicyText]:
        """Its own policies, as written, with where they stand."""
        return self._read("policies", self.policies)

    def invariant_texts(self) -> list[PolicyText]:
        """Its invariants, as written, with where they stand."""
        return self._read("invariants", self.invariants)

    def bundle(self) -> dict[str, Any]:
        """The bundle that it is: what would be published.

        Raises:
            ProjectError: A pack or a policy is refused; ``licet policy lint`` says where.
        """
        try:
            return compose(self.packs, self.own_text, self.extension)
        except LicetPoliciesError as error:
            raise ProjectError(f"{error}; `licet policy lint` says where") from error

    def _read(self, kind: str, files: tuple[SourceFile, ...]) -> list[PolicyText]:
        if kind not in self._texts:
            self._texts[kind] = [policy for file in files for policy in read_policies(file)]
        return self._texts[kind]


def load_project(folder: Path) -> Project:
    """Read the project in a folder.

    Raises:
        ProjectError: It is no project, or one of its files cannot be used.
    """
    root = project_root(folder)
    text = read_text(root, CONFIG_FILE, max_bytes=_MAX_CONFIG_BYTES)
    config = parse_config(text)
    named = list(config.schema_.extensions)
    for name in list_files(root, SCHEMA_FOLDER):
        if name not in named:
            raise ProjectError(
                f"is not named in {CONFIG_FILE}: add it to extensions below [schema], or take it away", file=name
            )
    return Project(
        root=root,
        config=config,
        config_file=SourceFile(CONFIG_FILE, text),
        policies=_sources(root, POLICY_FOLDER),
        invariants=_sources(root, INVARIANT_FOLDER),
        extension=_extension(root, named),
    )


def parse_config(text: str) -> Config:
    """Read the text of a ``licet.toml``.

    Raises:
        ProjectError: It is no TOML, or not what a ``licet.toml`` says.
    """
    try:
        value = tomllib.loads(text)
    except RecursionError as error:
        raise ProjectError("nests too deep: it needs no more than three levels", file=CONFIG_FILE) from error
    except ValueError as error:  # TOMLDecodeError, and what an integer of thousands of digits raises.
        at = re.search(r"\(at line (\d+), column \d+\)", str(error))
        raise ProjectError(
            f"is not TOML: {error}", file=CONFIG_FILE, line=None if at is None else int(at[1])
        ) from error
    try:
        config = Config.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ProjectError(
            refusal_text(first["loc"], first["type"], first["msg"], _keys_at(first["loc"])),
            file=CONFIG_FILE,
            line=line_of(text, first["loc"]),
        ) from error
    _verify_packs(config, text)
    return config


def refusal_text(keys: tuple[str | int, ...], kind: str, message: str, known: tuple[str, ...] = ()) -> str:
    """What is wrong at a key, and what to do, from what pydantic found there."""
    where = ".".join(str(key) for key in keys if not str(key).startswith(("constrained-", "list[", "function-")))
    where = where or "the file"
    if kind in ("model_type", "dict_type"):
        return f"{where}: must be a table or mapping of keys"
    if kind == "extra_forbidden":
        return f"{where}: no such key" + (f"; there are {', '.join(known)}" if known else "; take it away")
    if kind == "missing":
        return f"{where}: must be given"
    said = message.removeprefix("Value error, ").removeprefix("Input should be ")
    lead = "must be " if message.startswith("Input should be ") else ""
    return f"{where}: {lead}{said[:300]}"


def _keys_at(keys: tuple[str | int, ...]) -> tuple[str, ...]:
    """The keys that there are beside the last of a path."""
    inner: Mapping[str, type[BaseModel]] = {
        "packs": PackSettings,
        "schema": SchemaSettings,
        "lint": LintSettings,
        "coverage": CoverageSettings,
    }
    model = inner.get(str(keys[0]), Config) if len(keys) > 1 else Config
    return tuple(info.alias or name for name, info in model.model_fields.items())


def _verify_packs(config: Config, text: str) -> None:
    for name, chosen in config.packs.items():
        keys: tuple[str, ...] = ("packs", name)
        try:
            shipped = pack(name)
            for parameter, value in chosen.parameters.items():
                if parameter in shipped.parameters:
                    keys = ("packs", name, "parameters", parameter)
                    shipped.check(parameter, value)
            keys = ("packs", name)
            shipped.resolve(chosen.parameters)
        except PackError as error:
            raise ProjectError(f"{'.'.join(keys)}: {error}", file=CONFIG_FILE, line=line_of(text, keys)) from error


def _sources(root: Path, folder: str) -> tuple[SourceFile, ...]:
    return tuple(SourceFile(name, read_text(root, name)) for name in list_files(root, folder))


def _extension(root: Path, names: list[str]) -> Extension | None:
    if not names:
        return None
    parts = []
    for name in names:
        if not name.endswith(FOLDERS[SCHEMA_FOLDER]):
            raise ProjectError("a schema extension ends in .cedarschema or .json", file=name)
        parts.append((name, read_text(root, name)))
    try:
        return read_extension(parts)
    except LicetPoliciesError as error:
        raise ProjectError(str(error)) from error
