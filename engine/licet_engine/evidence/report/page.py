"""``report.html``: one file that opens from disk, for whoever is to understand an archive before they verify it.

Rules kept here:

- It says first what it is of, what it proves and what it does not, and how to find out without us whether it is true.
- Nothing is loaded, nothing runs: no script, no address outside of the archive, and a policy in the page that forbids both. The one
  style sheet is named there by its digest.
- What happened is told in `licet_engine.evidence.report.sections`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any, Final

from licet_attestations import archive
from licet_attestations.isolation import LIMITS
from licet_attestations.leaf import is_tenant
from licet_engine.evidence.contents import Scope
from licet_engine.evidence.report import sections
from licet_engine.evidence.report.lineage import Lineage
from licet_engine.evidence.report.markup import Markup, code, el, name, plural, table, text, when
from licet_engine.evidence.report.reading import Reading
from licet_engine.evidence.report.story import Story

_NAV: Final = (
    ("answer", "Answer"),
    ("proof", "What it proves"),
    ("verify", "How to verify"),
    ("happened", "What happened"),
    ("approvals", "Who allowed what"),
    ("policies", "Policies"),
    ("lineage", "Lineage"),
    ("refused", "Refused"),
    ("others", "Others"),
    ("troubles", "Alarms"),
    ("inside", "What is inside"),
)
_PROVES: Final = (
    (
        "Nothing was added, changed, dropped or put into another order between the first and the last entry: their hashes lead to the"
        " root that the signed checkpoint names."
    ),
    "Every record is the one that its entry commits to. What was erased is named as erased by a later entry, and its own still stands.",
    (
        "Every decision names its facts, its policies and the engine by digest, and can be evaluated again: a decision that does not"
        " follow from them shows."
    ),
    (
        "Every attestation is signed by a key of the trust root and named in the log, and every warrant leads back to a decision that"
        " allowed it."
    ),
)
_WITNESSES: Final = (
    "It does not show by itself that everybody was shown the same log. Witnesses do: verify with --tlog-policy, or compare the checkpoint"
    " with one that somebody else kept."
)
_NOTHING: Final = "Nothing stands in this window"
_NOTHING_SHOWS: Final = (
    "The log has no entry of that time, so this archive says nothing about isolation but that: no question was logged."
)
_PAGE: Final = "This page is made from the records for reading. It is not what proves: where it says other than the records, the records count."


@cache
def _style() -> str:
    return resources.files("licet_engine.evidence.report").joinpath("report.css").read_text("utf-8")


def page(reading: Reading) -> Iterator[bytes]:
    """The page, part by part."""
    scope, isolation, story, lineage, bundles = (
        reading.scope,
        reading.isolation,
        reading.story,
        reading.lineage,
        reading.bundles,
    )
    yield _head(scope).encode()
    yield _header(scope, story).encode()
    nav = el(
        "nav",
        {"aria-label": "Parts of this report"},
        el("ul", None, (el("li", None, el("a", {"href": f"#{key}"}, said)) for key, said in _NAV)),
    )
    yield f'<main id="content">{nav}'.encode()
    yield _answer(isolation, story, lineage).encode()
    yield _proof(isolation).encode()
    yield _verify(scope).encode()
    yield sections.happened(story).encode()
    yield sections.approvals(story).encode()
    yield sections.policies(story, bundles).encode()
    yield sections.lineages(scope, lineage).encode()
    yield sections.refused(story, bundles).encode()
    yield sections.others(story).encode()
    yield sections.troubles(story).encode()
    yield _inside(story).encode()
    yield b"</main>"
    yield el("footer", None, el("p", None, _PAGE)).encode()
    yield b"</body></html>\n"


def _head(scope: Scope) -> str:
    style = _style()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    metas = (
        el("meta", {"charset": "utf-8"}),
        el("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        el("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        el("meta", {"name": "referrer", "content": "no-referrer"}),
        el("title", None, f"Evidence of {scope.tenant}"),
    )
    # The one style sheet is a file of ours; nothing of anybody's is put into it.
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{"".join(metas)}<style>{style}</style></head>'
        f'<body><a class="skip" href="#content">To the content</a>'
    )


def _header(scope: Scope, story: Story) -> Markup:
    window = (
        el("span", None, "the whole log")
        if scope.from_ms is None and scope.to_ms is None
        else el(
            "span",
            None,
            "from ",
            "the beginning" if scope.from_ms is None else when(scope.from_ms),
            " up to ",
            "the end" if scope.to_ms is None else when(scope.to_ms),
        )
    )
    empty = el("span", {"class": "none"}, "none")
    facts: tuple[tuple[str, str], ...] = (
        ("Tenant", name(scope.tenant)),
        ("Installation", name(scope.instance)),
        ("Window asked for", window),
        (
            "Entries",
            el(
                "span",
                None,
                f"{scope.first} up to {scope.end}, itself left out: {plural(story.entries, 'entry', 'entries')}",
            ),
        ),
        (
            "First and last",
            el(
                "span",
                None,
                empty if story.first_ms is None else when(story.first_ms),
                " and ",
                empty if story.last_ms is None else when(story.last_ms),
            ),
        ),
        (
            "Log",
            el(
                "span",
                None,
                name(scope.origin, 160),
                f", {plural(scope.size, 'entry', 'entries')} at the checkpoint, root ",
                code(scope.root_hex, 64),
            ),
        ),
        ("Exported", when(scope.exported_at_ms)),
    )
    return el(
        "header",
        None,
        el("p", {"class": "kicker"}, "Evidence archive"),
        el("h1", None, "What happened at ", name(scope.tenant)),
        el(
            "p",
            {"class": "lead"},
            "Who asked for what, what policy answered, what was done under it, and on which data: as the tenant's log has it.",
        ),
        el(
            "dl",
            {"class": "facts"},
            (part for said, value in facts for part in (el("dt", None, said), el("dd", None, value))),
        ),
    )


def _answer(isolation: Mapping[str, Any], story: Story, lineage: Lineage) -> Markup:
    answer = str(isolation.get("answer", ""))
    said = {"holds": "Isolation holds on record", "broken": "Isolation is broken on record"}
    kind = answer if answer in {"holds", "broken"} and story.entries else "unknown"
    tiles = (
        ("decisions allowed", story.decided["allow"]),
        ("decisions denied", story.decided["deny"]),
        ("attempts of other tenants", story.foreign.total()),
        ("of these allowed", story.foreign["allow"]),
        ("approval events", story.approvals.total),
        ("bundles in force", len(story.bundles)),
        ("model versions attested", len(lineage.versions) + len(lineage.left_out)),
        ("alarms and roll-backs", story.traffic.total),
        ("looks behind the glass", story.looks),
        ("records erased", story.erased.total()),
    )
    return sections.section(
        "answer",
        "The answer",
        "",
        el(
            "p",
            {"class": f"answer {kind}"},
            el(
                "strong",
                None,
                said.get(answer, "Whether isolation holds cannot be told") if story.entries else _NOTHING,
            ),
            text(str(isolation.get("sentence", "")) if story.entries else _NOTHING_SHOWS, 1000),
        ),
        el(
            "dl",
            {"class": "tiles"},
            (el("div", None, el("dt", None, label), el("dd", None, f"{count:,}")) for label, count in tiles),
        ),
    )


def _proof(isolation: Mapping[str, Any]) -> Markup:
    told = isolation.get("does_not_prove")
    limits = [str(each) for each in told][:12] if isinstance(told, list) and told else list(LIMITS)
    return sections.section(
        "proof",
        "What it proves, and what it does not",
        "That holds of the archive once it is verified with a trust root that did not come with it.",
        el(
            "div",
            {"class": "two"},
            _listed("It proves", _PROVES),
            _listed("It does not prove", (*limits, _WITNESSES, _PAGE)),
        ),
    )


def _listed(heading: str, items: tuple[str, ...]) -> Markup:
    return el(
        "div",
        None,
        el("h3", None, heading),
        el("ul", {"class": "plain"}, (el("li", None, text(item, 600)) for item in items)),
    )


def _verify(scope: Scope) -> Markup:
    # A command is copied: nothing stands in it but what cannot be more than a word.
    tenant = scope.tenant if is_tenant(scope.tenant) and scope.tenant[0] != "~" else "TENANT"
    command = f"licet verify ARCHIVE.zip --trust-root trust-root.json --tenant {tenant} --replay"
    return sections.section(
        "verify",
        "How to verify it",
        "",
        el("p", None, "With Licet's verifier, which needs no server and no network:"),
        el("pre", None, el("code", None, command)),
        el(
            "p",
            None,
            "The trust root must come to you by another way than this archive: from the platform's operator, signed or by hand.",
        ),
        el(
            "p",
            None,
            "With other people's software: the attestations are DSSE envelopes of in-toto statements (securesystemslib, @sigstore/verify), the"
            " checkpoint is a C2SP signed note over an RFC 6962 tree (Go's sumdb/note and sumdb/tlog), model signatures are OpenSSF Model"
            " Signing (model_signing). The digests of all files are in ",
            el("a", {"href": archive.MANIFEST}, archive.MANIFEST),
            ", which a signed statement names.",
        ),
    )


def _inside(story: Story) -> Markup:
    kinds, more, entries = story.kinds.top(24)
    attested, more_types, statements = story.attestations.top(24)
    files = (
        (archive.SHEET, "one row for each entry: the index of everything"),
        (archive.INDEX, "figures for programs"),
        (archive.OSCAL, "OSCAL assessment results, for tools of governance"),
        (archive.CHECKPOINT, "the signed checkpoint of the log"),
    )
    links = (el("li", None, el("a", {"href": path}, path), f": {said}") for path, said in files)
    return sections.section(
        "inside",
        "What is inside",
        "",
        el("ul", {"class": "plain"}, links),
        el(
            "div",
            {"class": "two"},
            el(
                "div",
                None,
                table(
                    "Entries by kind",
                    ("kind", "entries"),
                    ((name(k.name), str(k.total)) for k in kinds),
                    more,
                    rest=f" ({entries} entries)",
                ),
            ),
            el(
                "div",
                None,
                table(
                    "Attestations by type",
                    ("type", "attestations"),
                    ((name(a.name), str(a.total)) for a in attested),
                    more_types,
                    rest=f" ({statements})",
                ),
            ),
        ),
    )
