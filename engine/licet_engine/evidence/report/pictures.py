"""The pictures of the page, as SVG within it: decisions over time, policies in force, and where a model version came from.

Rules kept here:

- What a picture shows, a title and a description say in words, and a table beside it in figures. Colour is never the only sign.
- Sizes follow from bounded counts. Text is cut to its box, and the box clips what is wider than it looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from licet_engine.evidence.report.counting import Buckets
from licet_engine.evidence.report.lineage import Lineage, Mark, Run, Version
from licet_engine.evidence.report.markup import Markup, el, plural
from licet_engine.evidence.report.story import Span, Story
from licet_engine.evidence.report.text import fitting, moment, visible

WIDTH: Final = 960
_DAY_MS: Final = 86_400_000


def _svg(key: str, height: int, title: str, described: str, *children: str | Iterable[str]) -> Markup:
    return el(
        "svg",
        {
            "viewBox": f"0 0 {WIDTH} {height}",
            "role": "img",
            "aria-labelledby": f"{key}-t {key}-d",
            "class": "picture",
        },
        el("title", {"id": f"{key}-t"}, title),
        el("desc", {"id": f"{key}-d"}, described),
        *children,
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str = "axis") -> Markup:
    return el("line", {"x1": _n(x1), "y1": _n(y1), "x2": _n(x2), "y2": _n(y2), "class": kind})


def _rect(x: float, y: float, width: float, height: float, kind: str, *children: str) -> Markup:
    return el("rect", {"x": _n(x), "y": _n(y), "width": _n(width), "height": _n(height), "class": kind}, *children)


def _text(x: float, y: float, said: str, kind: str = "label", anchor: str | None = None) -> Markup:
    return el("text", {"x": _n(x), "y": _n(y), "class": kind, "text-anchor": anchor}, said)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _tick(time_ms: int, span_ms: int) -> str:
    told = moment(time_ms)
    if "T" not in told:
        return told
    if span_ms > 4 * _DAY_MS:
        return told[:10]
    return f"{told[5:10]} {told[11:16]}" if span_ms > 10 * 60_000 else told[11:19]


# --- Decisions over time ------------------------------------------------------------------------------------------------

_LEFT, _TOP, _UP, _DOWN = 52, 14, 120, 80
_UPWARD: Final = ("allow", "erased")
_DOWNWARD: Final = ("deny", "foreign")


def decisions(times: Buckets) -> Markup:
    """Allowed decisions upward, denied ones and attempts of others downward, bucket by bucket."""
    each = times.each()
    begin, end = each[0][0], each[-1][0] + times.width_ms
    plot = WIDTH - _LEFT - 8
    step = plot * times.width_ms / (end - begin)
    middle = _TOP + _UP
    up = max(1, *(sum(counts[word] for word in _UPWARD) for _, counts in each))
    down = max(1, *(sum(counts[word] for word in _DOWNWARD) for _, counts in each))

    def bars() -> Iterator[Markup]:
        for at_ms, counts in each:
            x = _LEFT + plot * (at_ms - begin) / (end - begin)
            said = ", ".join(f"{counts[word]} {_WORDS[word]}" for word in (*_UPWARD, *_DOWNWARD) if counts[word])
            upward = _stack(x, step, middle, -_UP / up, ((word, counts[word]) for word in _UPWARD))
            downward = _stack(x, step, middle, _DOWN / down, ((word, counts[word]) for word in _DOWNWARD))
            yield el("g", None, el("title", None, f"{moment(at_ms)}: {said}"), upward, downward)

    bottom = middle + _DOWN
    scale = [
        _line(_LEFT, middle, WIDTH - 8, middle),
        _text(_LEFT - 8, _TOP + 10, str(up), anchor="end"),
        _text(_LEFT - 8, middle + 4, "0", anchor="end"),
        _text(_LEFT - 8, bottom, str(down), anchor="end"),
    ]
    described = (
        f"{plural(len(each), 'bar')} of {width_text(times.width_ms)} each, from {moment(begin)} to {moment(end)}."
        f" At most {up} allowed and {down} denied in one. The table below has the figures."
    )
    return _svg(
        "decisions", bottom + 34, "Decisions over time", described, scale, bars(), _times(begin, end, bottom + 24)
    )


_WORDS: Final = {"allow": "allowed", "erased": "erased", "deny": "denied", "foreign": "tried by others"}


def _stack(x: float, step: float, middle: float, unit: float, parts: Iterable[tuple[str, int]]) -> Iterator[Markup]:
    """One bar: its parts one on the other, upward for a negative unit."""
    at = middle
    for word, count in parts:
        if count:
            # One among thousands is still to be seen.
            height = max(2.0, abs(count * unit))
            top = at - height if unit < 0 else at
            yield _rect(x + step * 0.08, top, max(1.0, step * 0.84), height, f"bar {word}")
            at = top if unit < 0 else at + height


def _times(begin: int, end: int, y: float, left: int = _LEFT) -> list[Markup]:
    plot = WIDTH - left - 8
    places = [(part / 4, "start" if part == 0 else "end" if part == 4 else "middle") for part in range(5)]  # noqa: PLR2004 - four parts.
    return [
        _text(left + plot * share, y, _tick(begin + int((end - begin) * share), end - begin), anchor=anchor)
        for share, anchor in places
    ]


def width_text(width_ms: int) -> str:
    """How wide a bucket is, in words."""
    for unit_ms, one in ((604_800_000, "week"), (_DAY_MS, "day"), (3_600_000, "hour"), (60_000, "minute")):
        if width_ms >= unit_ms:
            return plural(width_ms // unit_ms, one)
    return plural(width_ms // 1000, "second")


# --- Policies in force --------------------------------------------------------------------------------------------------

_ROW, _NAMES = 30, 128
MAX_ROWS: Final = 16


def policies(story: Story) -> Markup:
    """When each of the newest bundles decided: a row for each, a bar for each unbroken run of decisions."""
    newest = list(dict.fromkeys(span.bundle for span in reversed(story.spans)))[:MAX_ROWS][::-1]
    spans = [span for span in story.spans if span.bundle in newest]
    begin, end = spans[0].first_ms, max(spans[-1].last_ms, spans[0].first_ms + 1)
    plot = WIDTH - _NAMES - 8

    def bar(span: Span) -> Markup:
        x = _NAMES + plot * (span.first_ms - begin) / (end - begin)
        wide = max(4.0, plot * (span.last_ms - span.first_ms) / (end - begin))
        y = 8 + newest.index(span.bundle) * _ROW
        said = (
            f"{visible(span.bundle[:12])}: {plural(span.decisions, 'decision')}, entries {span.first} to {span.last},"
            f" {moment(span.first_ms)} to {moment(span.last_ms)}"
        )
        return _rect(min(x, WIDTH - 8 - wide), y, wide, _ROW - 12, "bar force", el("title", None, said))

    rows = [
        (
            _text(0, 8 + at * _ROW + 14, fitting(digest[:12], 14), "mono"),
            _line(_NAMES, 17 + at * _ROW, WIDTH - 8, 17 + at * _ROW, "rule"),
        )
        for at, digest in enumerate(newest)
    ]
    bottom = 8 + len(newest) * _ROW
    described = (
        f"{plural(len(newest), 'bundle')}, each with the times in which it decided; the table below has the figures."
    )
    return _svg(
        "policies",
        bottom + 24,
        "Policies in force over time",
        described,
        *rows,
        map(bar, spans),
        _times(begin, end, bottom + 14, _NAMES),
    )


# --- Lineage ------------------------------------------------------------------------------------------------------------

_BOX, _GAP, _HIGH, _BETWEEN = 168, 30, 58, 12
_COLUMNS: Final = 23
"""Of narrow letters that surely fit into a box."""
_MOST: Final = 4


@dataclass(frozen=True, slots=True)
class _Box:
    kind: str
    lines: tuple[str, str, str]
    whole: str


def lineage(key: str, version: Version, found: Lineage, tenant: str) -> Markup:
    """A version between what it was made of and where it went."""
    runs = found.runs_of(version)
    columns = (
        _datasets(runs, tenant),
        [_run(run, tenant) for run in runs[:_MOST]],
        [_version(version, tenant)],
        [_mark("promoted", mark, tenant) for mark in version.promotions][-_MOST:],
        [_mark("bad" if mark.detail.startswith(_BAD) else "deployed", mark, tenant) for mark in version.deployments][
            -_MOST:
        ],
    )
    height = max(map(len, columns)) * (_HIGH + _BETWEEN) + 22
    placed = [
        [(_x(at), _y(number, len(column), height)) for number in range(len(column))]
        for at, column in enumerate(columns)
    ]
    heads = [_text(_x(at), 10, head, "head") for at, head in enumerate(_HEADS)]
    boxes = [
        _drawn(box, x, y)
        for column, spots in zip(columns, placed, strict=True)
        for box, (x, y) in zip(column, spots, strict=True)
    ]
    said = f"{visible(version.name)}: " + "; ".join(
        f"{head.lower()}: {', '.join(box.lines[0] for box in column) or 'none attested in this archive'}"
        for head, column in zip(_HEADS, columns, strict=True)
    )
    return _svg(key, height, f"Lineage of {visible(version.name)}", said, heads, _edges(placed), boxes)


_HEADS: Final = ("Dataset", "Training run", "Model version", "Promotion", "Endpoint")
_BAD: Final = ("rolled-back", "failed")


def _datasets(runs: Sequence[Run], tenant: str) -> list[_Box]:
    named = dict.fromkeys(dataset for run in runs for dataset in run.datasets)
    return [
        _Box("dataset", (_own(name, tenant), digest[:16], ""), f"{name}, {digest}")
        for name, digest in list(named)[:_MOST]
    ]


def _run(run: Run, tenant: str) -> _Box:
    return _Box(
        "run", (_own(run.name, tenant), run.finished[:19].replace("T", " "), f"attested, entry {run.index}"), run.name
    )


def _version(version: Version, tenant: str) -> _Box:
    passed = sum(mark.detail == "PASSED" for mark in version.checks)
    checks = (
        f"{passed} of {plural(version.checks.total, 'check')} passed" if version.checks.total else "no checks attested"
    )
    approved = plural(version.approvals.total, "verdict") if version.approvals.total else "no verdicts attested"
    return _Box("version", (_own(version.name, tenant), checks, approved), f"{version.name}, {version.model_hex}")


def _mark(kind: str, mark: Mark, tenant: str) -> _Box:
    return _Box(
        kind,
        (_own(mark.name, tenant), mark.detail, mark.at[:19].replace("T", " ")),
        f"{mark.name}: {mark.detail}, {mark.at}",
    )


def _own(name: str, tenant: str) -> str:
    return name.removeprefix(f"{tenant}/") or "unnamed"


def _x(column: int) -> int:
    return column * (_BOX + _GAP)


def _y(number: int, of: int, height: int) -> float:
    used = of * (_HIGH + _BETWEEN) - _BETWEEN
    return 18 + (height - 18 - used) / 2 + number * (_HIGH + _BETWEEN)


def _drawn(box: _Box, x: float, y: float) -> Markup:
    kinds = ("boxname", "boxline", "boxline")
    lines = [
        _text(12, 18 + 15 * number, fitting(said, _COLUMNS), kind)
        for number, (said, kind) in enumerate(zip(box.lines, kinds, strict=True))
        if said
    ]
    # A nested svg clips what is in it.
    return el(
        "svg",
        {"x": _n(x), "y": _n(y), "width": _BOX, "height": _HIGH},
        el("title", None, visible(box.whole, 400)),
        el(
            "rect",
            {"x": "0.5", "y": "0.5", "width": _BOX - 1, "height": _HIGH - 1, "rx": 6, "class": f"box {box.kind}"},
        ),
        el("rect", {"x": 0, "y": 8, "width": 4, "height": _HIGH - 16, "class": f"stripe {box.kind}"}),
        lines,
    )


def _edges(placed: Sequence[Sequence[tuple[float, float]]]) -> list[Markup]:
    """Curves from each box to those that follow; a column with nothing in it is passed over."""
    present = [spots for spots in placed if spots]
    curves = []
    for before, after in pairwise(present):
        # Of several in a column the newest stands last, and what follows rests on that; several that follow rest on one.
        pairs = [(start, target) for start in (before if len(after) == 1 else before[-1:]) for target in after]
        for (x1, y1), (x2, y2) in pairs:
            a, b, c, d = x1 + _BOX, y1 + _HIGH / 2, x2, y2 + _HIGH / 2
            bend = (c - a) / 2
            curves.append(
                el(
                    "path",
                    {
                        "d": f"M{_n(a)} {_n(b)}C{_n(a + bend)} {_n(b)} {_n(c - bend)} {_n(d)} {_n(c)} {_n(d)}",
                        "class": "edge",
                    },
                )
            )
    return curves
