"""Whatever stands in a name, the page has the elements, attributes and addresses that it has without."""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Any

import html5lib
from hypothesis import given, settings
from hypothesis import strategies as st

from licet_engine.evidence.report import derived
from licet_engine.evidence.report.markup import el, name, text
from licet_engine.evidence.report.text import visible
from report_contents import MadeUp

PIECES = st.sampled_from(
    [
        "<",
        ">",
        '"',
        "'",
        "&",
        "/",
        "=",
        "`",
        "<script>",
        "</",
        "<!--",
        "-->",
        "]]>",
        "<svg",
        "onload=",
        "javascript:",
        "&#x3c;",
        "\u202e",
        "\x00",
    ]
)
HOSTILE = (
    st.lists(st.one_of(PIECES, st.text(st.characters(), max_size=4)), min_size=1, max_size=12)
    .map("".join)
    .filter(str.strip)
)


def parsed(markup: str) -> Any:
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parseFragment(markup)


@given(HOSTILE)
@settings(max_examples=400)
def test_a_name_is_one_element_with_its_text(hostile: str) -> None:
    (found,) = parsed(name(hostile, 10_000))
    assert found.tag == "bdi"
    assert set(found.attrib) == {"class"}
    assert {each.tag for each in found} <= {"span"}
    assert "".join(found.itertext()) == visible(hostile, 10_000)


@given(HOSTILE)
@settings(max_examples=400)
def test_an_attribute_is_one_attribute(hostile: str) -> None:
    (found,) = parsed(el("p", {"title": hostile, "aria-label": hostile}, text(hostile), hostile))
    assert found.attrib == {"title": visible(hostile, 2000), "aria-label": visible(hostile, 2000)}
    assert "".join(found.itertext()) == visible(hostile) + visible(hostile, 4000)


def shape(hostile: str) -> Counter[tuple[str, str, tuple[str, ...]]]:
    files = {found: b"".join(chunks) for found, chunks in derived(MadeUp(hostile))}
    tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(files["report.html"].decode())
    # Counted, since lists that are sorted by name have another order.
    return Counter(
        (str(each.tag), each.attrib.get("href", ""), tuple(sorted(set(each.attrib) - {"title"})))
        for each in tree.iter()
        if each.attrib.get("class") != "odd"
    )


@given(HOSTILE)
@settings(max_examples=30, deadline=None)
def test_the_whole_page_has_one_shape(hostile: str) -> None:
    assert shape(hostile) == shape("ordinary")


@given(HOSTILE)
@settings(max_examples=30, deadline=None)
def test_no_file_has_a_character_that_cannot_be_seen(hostile: str) -> None:
    for found, chunks in derived(MadeUp(hostile)):
        unseen = {
            char
            for char in b"".join(chunks).decode()
            if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        }
        # The rows of the table end so, and the style sheet has lines.
        assert unseen <= {"entries.csv": {"\r", "\n"}, "report.html": {"\n"}}.get(found, set())
