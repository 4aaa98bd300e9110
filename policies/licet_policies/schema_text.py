"""Cedar's own schema syntax, read into declarations: cedarpy reads it, but does not give back what it read.

Rules kept: a part of the grammar that an extension may not use (enumerated entities, tags) is refused by name, never
passed over; annotations are read and left out, since Cedar does not evaluate them. What a name means is not told here.

Source: the Cedar schema grammar, https://docs.cedarpolicy.com/schema/human-readable-schema-grammar.html.
"""

from dataclasses import dataclass
from typing import Any, Final

from licet_policies.errors import SchemaExtensionError
from licet_policies.tokens import Token, tokens

__all__ = ["Declared", "read_namespaces"]

_MAX_DEPTH: Final = 16


@dataclass(frozen=True)
class Declared:
    """One declaration.

    Attributes:
        kind: ``entityTypes``, ``commonTypes`` or ``actions``.
        namespace: In which it stands; empty if in none.
        name: Of the type, or id of the action.
        body: In Cedar's JSON format, names as they were written.
        where: How it is called in messages.
    """

    kind: str
    namespace: str
    name: str
    body: Any
    where: str


def read_namespaces(where: str, text: str) -> list[Declared]:
    """Read a schema in Cedar's own syntax.

    Args:
        where: How the file is called in messages.
        text: What it holds.

    Raises:
        SchemaExtensionError: It is no schema, or uses what an extension may not.
    """
    reader = _Reader(where, text)
    found: list[Declared] = []
    while not reader.is_at_end:
        reader.annotations()
        if reader.takes("namespace"):
            space = reader.path()
            reader.expect("{")
            while not reader.takes("}"):
                found += reader.declaration(space)
        else:
            found += reader.declaration("")
    return found


class _Reader:
    """A descent over the tokens of one schema."""

    def __init__(self, where: str, text: str) -> None:
        self._where = where
        self._text = text
        self._tokens = [token for token in tokens(text) if token.kind != "skipped"]
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        """Whether everything was read."""
        return self._at >= len(self._tokens)

    @property
    def here(self) -> str:
        """The file and line that is read."""
        offset = self._tokens[self._at].begin if not self.is_at_end else len(self._text)
        return f"{self._where}:{self._text.count(chr(10), 0, offset) + 1}"

    def fail(self, wanted: str) -> SchemaExtensionError:
        """The error for what stands here instead of what was wanted."""
        found = "the end of the file" if self.is_at_end else repr(self._tokens[self._at].text[:60])
        return SchemaExtensionError(f"{self.here}: expected {wanted}, found {found}")

    def takes(self, text: str) -> bool:
        """Go on if the next token is that one."""
        if self.is_at_end or self._tokens[self._at].text != text:
            return False
        self._at += 1
        return True

    def expect(self, text: str) -> None:
        """Go on behind the next token, which must be that one."""
        if not self.takes(text):
            raise self.fail(f"`{text}`")

    def annotations(self) -> None:
        """Pass over ``@name`` and ``@name("text")``."""
        while self.takes("@"):
            self._take("word", "the name of an annotation")
            if self.takes("("):
                self._take("string", "the text of the annotation")
                self.expect(")")

    def path(self) -> str:
        """A name with its namespaces."""
        parts = [self._take("word", "a name").text]
        while self.takes(":"):
            self.expect(":")
            parts.append(self._take("word", "a name").text)
        return "::".join(parts)

    def declaration(self, space: str) -> list[Declared]:
        """One declaration, which may declare several names."""
        self.annotations()
        where = self.here
        if self.takes("entity"):
            kind, (names, body) = "entityTypes", self._entity()
        elif self.takes("action"):
            kind, (names, body) = "actions", self._action()
        elif self.takes("type"):
            kind, names = "commonTypes", [self._take("word", "a name").text]
            self.expect("=")
            body = self._type(_MAX_DEPTH)
        else:
            raise self.fail("`entity`, `action`, `type` or `namespace`")
        self.expect(";")
        return [Declared(kind, space, name, body, f"{where}: {name[:128]}") for name in names]

    def _entity(self) -> tuple[list[str], dict[str, Any]]:
        names = self._names()
        body: dict[str, Any] = {}
        if self.takes("enum"):
            raise SchemaExtensionError(f"{self.here}: an enumerated entity has no tenant; use a set of words instead")
        if self.takes("in"):
            body["memberOfTypes"] = self._paths()
        if self.takes("=") or (not self.is_at_end and self._tokens[self._at].text == "{"):
            body["shape"] = self._type(_MAX_DEPTH)
        if self.takes("tags"):
            raise SchemaExtensionError(f"{self.here}: tags cannot stand in an extension; declare an attribute")
        return names, body

    def _action(self) -> tuple[list[str], dict[str, Any]]:
        names = self._names()
        body: dict[str, Any] = {}
        if self.takes("in"):
            body["memberOf"] = self._groups()
        if not self.takes("appliesTo"):
            return names, body
        applies: dict[str, Any] = {}
        self.expect("{")
        while not self.takes("}"):
            key = self._take("word", "`principal`, `resource` or `context`").text
            self.expect(":")
            if key in ("principal", "resource") and f"{key}Types" not in applies:
                applies[f"{key}Types"] = self._paths()
            elif key == "context" and key not in applies:
                applies[key] = self._type(_MAX_DEPTH)
            else:
                raise SchemaExtensionError(f"{self.here}: expected each of principal, resource and context once")
            if not self.takes(","):
                self.expect("}")
                break
        body["appliesTo"] = applies
        return names, body

    def _groups(self) -> list[dict[str, str]]:
        if not self.takes("["):
            return [self._group()]
        found = []
        while not self.takes("]"):
            found.append(self._group())
            if not self.takes(","):
                self.expect("]")
                break
        return found

    def _group(self) -> dict[str, str]:
        """A group of actions: its id alone, or with its type before it."""
        parts = [self._name("an action")]
        while self.takes(":"):
            self.expect(":")
            parts.append(self._name("an action"))
        return {"id": parts[-1], **({"type": "::".join(parts[:-1])} if len(parts) > 1 else {})}

    def _names(self) -> list[str]:
        found = [self._name("a name")]
        while self.takes(","):
            found.append(self._name("a name"))
        return found

    def _paths(self) -> list[str]:
        if not self.takes("["):
            return [self.path()]
        found = []
        while not self.takes("]"):
            found.append(self.path())
            if not self.takes(","):
                self.expect("]")
                break
        return found

    def _type(self, depth: int) -> dict[str, Any]:
        if depth == 0:
            raise SchemaExtensionError(f"{self.here}: types stand at most {_MAX_DEPTH} deep in one another")
        if self.takes("{"):
            return {"type": "Record", "attributes": self._attributes(depth - 1)}
        name = self.path()
        if name != "Set":
            return {"type": "EntityOrCommon", "name": name}
        self.expect("<")
        element = self._type(depth - 1)
        self.expect(">")
        return {"type": "Set", "element": element}

    def _attributes(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not self.takes("}"):
            self.annotations()
            name = self._name("an attribute")
            is_optional = self.takes("?")
            self.expect(":")
            if name in found:
                raise SchemaExtensionError(f"{self.here}: attribute {name[:128]!r} is declared twice")
            found[name] = {**self._type(depth), **({"required": False} if is_optional else {})}
            if not self.takes(","):
                self.expect("}")
                break
        return found

    def _name(self, wanted: str) -> str:
        """A word, or any text in quotes that needs no escape."""
        if not self.is_at_end and self._tokens[self._at].kind == "string":
            text = self._take("string", wanted).text[1:-1]
            if "\\" in text:
                raise SchemaExtensionError(f"{self.here}: a name needs no backslash")
            return text
        return self._take("word", wanted).text

    def _take(self, kind: str, wanted: str) -> Token:
        if self.is_at_end or self._tokens[self._at].kind != kind:
            raise self.fail(wanted)
        self._at += 1
        return self._tokens[self._at - 1]
