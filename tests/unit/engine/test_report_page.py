"""``report.html``: what an auditor sees first. Read by a parser that reads as browsers do, and refuses what is not HTML."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from typing import Any

import html5lib
import pytest

from licet_attestations.isolation import LIMITS
from licet_engine.evidence.report import derived
from licet_engine.evidence.report.lineage import lineage_of
from licet_engine.evidence.report.markup import Markup, el, name, text
from licet_engine.evidence.report.text import visible
from report_contents import MadeUp

LINK = re.compile(
    r"#[a-z]+|(?:entries\.csv|index\.json|oscal\.json|manifest\.json|checkpoint\.txt)|attestations/[0-9]{12}\.jsonl|bundles/[0-9a-f]{64}\.json"
)
HOSTILE = (
    "<script>document.title='taken'</script>",
    "\"><img src=x onerror=document.title='taken'>",
    "'><svg/onload=document.title='taken'>",
    "</title></style></svg><base href=//evil.example><a href=javascript:alert(1)>x",
    "javascript:document.title='taken'",
    "]]><!--",
    "&lt;b&gt;&#x3c;script&#x3e;",
    "\u202etxt.exe\u2066\x00\x1b[31m\u200b",
    "x" * 3000,
    "\u6771" * 500,
    "e" + "\u0301" * 300,
    "\ud800",
)


def page_of(made: MadeUp) -> str:
    return {found: b"".join(chunks) for found, chunks in derived(made)}["report.html"].decode()


def parsed(page: str) -> Any:
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page)


def words(element: Any) -> str:
    return " ".join("".join(element.itertext()).split())


def plain(tag: str) -> str:
    return tag.rpartition("}")[2]


@pytest.fixture(scope="module")
def page() -> str:
    return page_of(MadeUp(rounds=2))


def test_the_page_is_html_without_an_error_and_has_its_landmarks(page: str) -> None:
    tree = parsed(page)
    tags = [plain(each.tag) for each in tree.iter() if isinstance(each.tag, str)]
    assert {tags.count(tag) for tag in ("header", "nav", "main", "footer", "h1", "title")} >= {1}
    assert tags.count("main") == tags.count("h1") == 1
    assert tree.attrib["lang"] == "en"
    identifiers = [each.attrib["id"] for each in tree.iter() if "id" in each.attrib]
    assert len(identifiers) == len(set(identifiers))
    for section in tree.iter("section"):
        assert section.attrib["aria-labelledby"] in identifiers
    for link in tree.iter("a"):
        assert LINK.fullmatch(link.attrib["href"])
        assert not link.attrib["href"].startswith("#") or link.attrib["href"][1:] in identifiers


def test_every_table_has_a_caption_and_heads_and_every_picture_words(page: str) -> None:
    tree = parsed(page)
    for table in tree.iter("table"):
        heads = list(table.iter("th"))
        assert words(table.find("caption"))
        assert {head.attrib["scope"] for head in heads} == {"col"}
        assert {len(list(row.iter("td"))) for row in table.find("tbody")} == {len(heads)}
    pictures = [each for each in tree.iter() if plain(str(each.tag)) == "svg" and each.attrib.get("role") == "img"]
    assert len(pictures) == 2 + 2
    for picture in pictures:
        named = picture.attrib["aria-labelledby"].split()
        found = {each.attrib.get("id"): words(each) for each in picture}
        assert all(found[key] for key in named)


def test_nothing_is_loaded_and_nothing_runs(page: str) -> None:
    tree = parsed(page)
    tags = {plain(each.tag) for each in tree.iter() if isinstance(each.tag, str)}
    assert not tags & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "image",
        "use",
        "foreignObject",
    }
    attributes = {key for each in tree.iter() for key in each.attrib}
    assert not {key for key in attributes if key.startswith("on") or key in {"src", "style", "srcset"}}
    (policy,) = (each.attrib["content"] for each in tree.iter("meta") if "http-equiv" in each.attrib)
    style = tree.find("head/style").text
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_says_what_it_does_not_prove_and_how_to_verify_it(page: str) -> None:
    said = words(parsed(page))
    for limit in LIMITS:
        assert limit in said
    assert "licet verify ARCHIVE.zip --trust-root trust-root.json --tenant northbank --replay" in said
    assert "Isolation holds on record" in said
    assert "where it says other than the records, the records count" in said


def test_a_broken_wall_is_told_first() -> None:
    made = MadeUp()
    made.add("attempt", {"action": "dataset.read", "decision": "allow", "resource": "x"}, actor="lakeside")
    said = words(parsed(page_of(made)).find("body/main/section"))
    assert "Isolation is broken on record" in said


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_name_is_text(hostile: str) -> None:
    ordinary, taken = parsed(page_of(MadeUp("ordinary"))), parsed(page_of(MadeUp(hostile)))

    def elements(tree: Any) -> Counter[str]:
        # Counted, since lists that are sorted by name have another order.
        return Counter(str(each.tag) for each in tree.iter() if each.attrib.get("class") != "odd")

    assert elements(taken) == elements(ordinary)
    assert {key for each in taken.iter() for key in each.attrib} <= {
        key for each in ordinary.iter() for key in each.attrib
    } | {"title"}
    assert [each.attrib["href"] for each in taken.iter("a")] == [each.attrib["href"] for each in ordinary.iter("a")]
    assert visible(hostile, 40).rstrip("…")[:30].strip() in "".join(taken.itertext())
    shown = "".join(taken.itertext())
    assert not set(shown) & set("\u202e\u2066\x00\x1b\u200b\ud800")


def test_a_command_to_copy_holds_no_hostile_name() -> None:
    made = MadeUp()
    made.tenant = "a; rm -rf ~"
    (command,) = (words(each) for each in parsed(page_of(made)).iter("pre"))
    assert command.endswith("--tenant TENANT --replay")


def test_the_page_does_not_grow_with_the_log() -> None:
    few, many = len(page_of(MadeUp(rounds=250))), len(page_of(MadeUp(rounds=600)))
    assert many < 1.05 * few
    assert "and 210 more" in words(parsed(page_of(MadeUp(rounds=125))))


def test_an_empty_window_has_a_page() -> None:
    said = words(parsed(page_of(MadeUp(rounds=0))))
    assert "Model versions: none attested in this archive." in said
    assert "Approvals: none on record." in said
    # That nobody is on record in a time of which there is no record answers nothing.
    assert "Nothing stands in this window" in said
    assert "Isolation holds" not in said


def test_a_picture_shows_where_a_version_came_from_and_where_it_went() -> None:
    tree = parsed(page_of(MadeUp("credit")))
    (picture,) = (each for each in tree.iter() if each.attrib.get("aria-labelledby") == "lineage-0-t lineage-0-d")
    texts = [words(each) for each in picture.iter() if plain(str(each.tag)) == "text"]
    assert texts[:5] == ["Dataset", "Training run", "Model version", "Promotion", "Endpoint"]
    assert [
        each
        for each in ("credit", "credit@1", "prod", "1 of 1 check passed", "rolled-back: drift")
        if each not in texts
    ] == []
    edges = [each for each in picture.iter() if each.attrib.get("class") == "edge"]
    assert len(edges) == 5


def test_another_set_of_bytes_is_another_line_and_has_no_run_that_did_not_make_it() -> None:
    made = MadeUp(rounds=2)
    lineage = lineage_of(made)
    first, second = lineage.versions.values()
    assert [run.index for run in lineage.runs_of(first)] != [run.index for run in lineage.runs_of(second)]
    second.files = first.files | second.files
    assert lineage.runs_of(second) == []


def test_markup_is_made_of_words_of_the_program() -> None:
    assert el("p", {"class": '"><b>'}, "<i>", name("&")) == (
        '<p class="&quot;&gt;&lt;b&gt;">&lt;i&gt;<bdi class="name">&amp;</bdi></p>'
    )
    assert text("a\u202e<") == 'a<span class="odd">\\u{202E}</span>&lt;'
    assert el("p", None, Markup("<b>")) == "<p><b></p>"
    for refused in ("script", "img", "p onclick", "", "P", "iframe"):
        with pytest.raises(ValueError, match="no report has an element"):
            el(refused)
    for refused in ("onclick", "src", "style", "x y", "OnLoad"):
        with pytest.raises(ValueError, match="no report has an attribute"):
            el("p", {refused: "x"})
    for refused in (
        "javascript:alert(1)",
        "//evil.example",
        "https://evil.example",
        "../x.json",
        "/etc/passwd",
        "#",
        "x.json#y",
    ):
        with pytest.raises(ValueError, match="is no place in an archive"):
            el("a", {"href": refused})
