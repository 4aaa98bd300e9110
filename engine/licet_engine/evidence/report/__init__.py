"""What an archive holds for people, and for the tools of those who audit: made of its entries and attestations, and nothing else.

Rules kept here:

- Everything here is derived. Where it says other than the records, the records count: what proves is the archive, not the report.
- Whatever a stranger wrote, in whatever script, is text here: no markup, no link, no formula, no command.
- Nothing grows with the log but ``entries.csv``, which is made row by row. What is left out is counted.
- The same contents give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from licet_attestations import archive
from licet_engine.evidence.contents import Contents
from licet_engine.evidence.report.index import index_bytes
from licet_engine.evidence.report.oscal import oscal_bytes
from licet_engine.evidence.report.page import page
from licet_engine.evidence.report.reading import read
from licet_engine.evidence.report.rows import row_of
from licet_engine.evidence.report.sheet import lines


def derived(contents: Contents) -> Iterator[tuple[str, Iterable[bytes]]]:
    """The files that are made of an archive's contents: name and content of each, in this order.

    Args:
        contents: Read three times: for the rows, for the figures, and its attestations for the lineage.
    """
    digests: dict[str, str] = {}
    yield archive.SHEET, _hashed(archive.SHEET, lines(row_of(seen) for seen in contents.entries()), digests)
    reading = read(contents)
    yield archive.INDEX, _hashed(archive.INDEX, (index_bytes(reading),), digests)
    yield archive.REPORT, _hashed(archive.REPORT, page(reading), digests)
    yield archive.OSCAL, (oscal_bytes(reading, digests),)


def _hashed(name: str, chunks: Iterable[bytes], digests: dict[str, str]) -> Iterator[bytes]:
    """The same chunks; when all were taken, the digest of the file is known."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    digests[name] = digest.hexdigest()
