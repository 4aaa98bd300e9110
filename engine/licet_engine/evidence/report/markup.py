"""HTML and SVG, made so that nobody's name can be more than text.

Rules kept here:

- A child that is no `Markup` is text, and is escaped; so is the value of every attribute. `Markup` is made in this module alone.
- Names of elements and attributes are words of the program. Scripts, styles of single elements, event handlers and everything
  that loads something are refused. An address is a place in this archive or on this page.
- Text of strangers is shown as `licet_engine.evidence.report.text` has it, set apart from what stands around it, whatever the
  direction of its script.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from typing import Final

from licet_attestations import archive
from licet_attestations.statement import is_sha256_hex
from licet_engine.evidence.report.text import MAX_CHARS, cut, moment, pieces, visible

Value = str | int | None


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


_MAX_NAME_CHARS: Final = 80
"""Of what is a name; more than that is a sentence, and is given more room."""
_WORD: Final = re.compile(r"[a-z][A-Za-z0-9-]*")
_HREF: Final = re.compile(
    r"#[a-z][a-z0-9-]*|[a-z]+\.(?:csv|json|html|txt)|attestations/[0-9]{12}\.jsonl|bundles/[0-9a-f]{64}\.json"
)
_FORBIDDEN: Final = frozenset(
    {"script", "style", "iframe", "object", "embed", "form", "base", "link", "image", "img", "use"}
)
_LOADING: Final = frozenset({"src", "srcset", "action", "formaction", "style", "data", "poster", "ping"})
_EMPTY: Final = frozenset({"meta", "br", "hr", "col"})


def text(value: str, max_chars: int = MAX_CHARS) -> Markup:
    """Somebody's text, escaped; characters that cannot be seen are set apart from the rest."""
    return Markup(
        "".join(
            f'<span class="odd">{html.escape(piece)}</span>' if odd else html.escape(piece)
            for piece, odd in pieces(cut(value, max_chars))
        )
    )


def el(name: str, attributes: Mapping[str, Value] | None = None, *children: str | Iterable[str]) -> Markup:
    """An element.

    Args:
        name: Of the element.
        attributes: None as a value leaves one out.
        children: Text, markup, or several of either.

    Raises:
        ValueError: An element, attribute or address that no report has.
    """
    if not _WORD.fullmatch(name) or name in _FORBIDDEN:
        raise ValueError(f"no report has an element {name!r:.40}")
    given = "".join(_attribute(key, value) for key, value in (attributes or {}).items() if value is not None)
    if name in _EMPTY:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{''.join(map(_child, children))}</{name}>")


def _attribute(name: str, value: str | int) -> str:
    if not _WORD.fullmatch(name) or name in _LOADING or name.startswith("on"):
        raise ValueError(f"no report has an attribute {name!r:.40}")
    if name == "href" and not _HREF.fullmatch(str(value)):
        raise ValueError(f"{value!r:.80} is no place in an archive")
    return f' {name}="{html.escape(visible(str(value), 2000))}"'


def _child(child: str | Iterable[str]) -> str:
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return html.escape(visible(child, 4000))
    return "".join(map(_child, child))


def name(value: str, max_chars: int = _MAX_NAME_CHARS) -> Markup:
    """A name: cut, with the rest shown when it is pointed at."""
    if not value:
        return el("span", {"class": "none"}, "none")
    whole = visible(value, 600) if len(value) > max_chars else None
    kind = "name" if max_chars <= _MAX_NAME_CHARS else "name long"
    return el("bdi", {"class": kind, "title": whole}, text(value, max_chars))


def code(value: str, shown: int = 12) -> Markup:
    """An identifier or digest: its first characters, the whole of it when it is pointed at."""
    if not value:
        return el("span", {"class": "none"}, "none")
    return el("code", {"title": visible(value, 200)}, text(value[:shown]))


def attested(digest_hex: str, index: int, first: int) -> Markup:
    """A link to where an attestation of the archive is: the one that entry ``index`` names, in a window that begins with ``first``."""
    if not is_sha256_hex(digest_hex):
        return code(digest_hex)
    return el(
        "a",
        {"href": archive.chunk_with(archive.ATTESTATIONS, index, first)},
        el("code", None, digest_hex[:12]),
        f" of entry {index}",
    )


def when(time_ms: int) -> Markup:
    """A time."""
    told = moment(time_ms)
    return el("time", {"datetime": told}, told.replace("T", " ", 1))


def plural(count: int, one: str, many: str = "") -> str:
    """``1 entry``, ``2 entries``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def table(
    caption: str, heads: Iterable[str], rows: Iterable[Iterable[str]], more: int = 0, *, rest: str = ""
) -> Markup:
    """A table that can be scrolled, with how many rows it leaves out."""
    body = [el("tr", None, (el("td", None, cell) for cell in row)) for row in rows]
    if not body:
        return el("p", {"class": "nothing"}, f"{caption}: none on record.")
    shown = el(
        "table",
        None,
        el("caption", None, caption),
        el("thead", None, el("tr", None, (el("th", {"scope": "col"}, head) for head in heads))),
        el("tbody", None, body),
    )
    left_out = el(
        "p",
        {"class": "more"},
        f"and {plural(more, 'more', 'more')}{rest}, see ",
        el("a", {"href": archive.SHEET}, archive.SHEET),
    )
    scrolled = el("div", {"class": "scroll", "role": "region", "aria-label": caption, "tabindex": 0}, shown)
    return Markup(scrolled + (left_out if more else ""))
