"""What an archive holds for people, and for the tools of those who audit: made of its entries and attestations, and nothing else.

Rules kept here:

- Everything here is derived. Where it says other than the records, the records count: what proves is the archive, not the report.
- Whatever a stranger wrote, in whatever script, is text here: no markup, no link, no formula, no command.
- Nothing grows with the log but ``entries.csv``, which is made row by row. What is left out is counted.
- The same contents give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from licet_attestations.statement import is_sha256_hex
from licet_engine.evidence.contents import Contents
from licet_engine.evidence.report.bundles import Summary, summary_of
from licet_engine.evidence.report.index import index_bytes
from licet_engine.evidence.report.lineage import lineage_of
from licet_engine.evidence.report.page import page
from licet_engine.evidence.report.rows import row_of
from licet_engine.evidence.report.sheet import lines
from licet_engine.evidence.report.story import Story, story_of

_MAX_TITLED: Final = 200


def derived(contents: Contents) -> Iterator[tuple[str, Iterable[bytes]]]:
    """The files that are made of an archive's contents: name and content of each, in this order.

    Args:
        contents: Read three times: for the rows, for the figures, and its attestations for the lineage.
    """
    yield "entries.csv", lines(row_of(seen) for seen in contents.entries())
    story, lineage = story_of(contents), lineage_of(contents)
    bundles = _bundles(contents, story)
    yield "index.json", (index_bytes(contents.scope, contents.isolation, story, lineage, bundles),)
    yield "report.html", page(contents.scope, contents.isolation, story, lineage, bundles)


def _bundles(contents: Contents, story: Story) -> dict[str, Summary]:
    shown, _, _ = story.refusing.top(_MAX_TITLED)
    wanted = frozenset(each.name for each in shown)
    named = (digest for digest in story.bundles if is_sha256_hex(digest))
    return {digest: summary_of(digest, contents.bundle(digest), wanted) for digest in named}
