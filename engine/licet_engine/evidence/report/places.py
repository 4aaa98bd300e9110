"""Where things lie in an archive, seen from its top folder: what reports refer to. Made of digests and words of ours alone."""

from __future__ import annotations

from typing import Final

from licet_attestations import archive

ENTRIES: Final = "entries.csv"
INDEX: Final = "index.json"
REPORT: Final = "report.html"
OSCAL: Final = "oscal.json"
CHECKPOINT: Final = "checkpoint.txt"
MANIFEST: Final = "manifest.json"


def attestations(index: int, first: int) -> str:
    """The envelopes that an entry and its neighbours name, in a window that begins with ``first``."""
    return archive.chunk_name(archive.ATTESTATIONS, max(first, index // archive.CHUNK * archive.CHUNK))


def bundle(digest_hex: str) -> str:
    """A policy bundle: the digest is that of the file."""
    return f"bundles/{digest_hex}.json"
