"""Where things lie in an archive, seen from its top folder: what reports refer to. Made of digests and words of ours alone."""

from __future__ import annotations

from typing import Final

ENTRIES: Final = "entries.csv"
INDEX: Final = "index.json"
REPORT: Final = "report.html"
OSCAL: Final = "oscal.json"
CHECKPOINT: Final = "checkpoint.txt"
MANIFEST: Final = "manifest.json"


def attestation(digest_hex: str) -> str:
    """The envelope whose payload has this digest."""
    return f"attestations/{digest_hex}.dsse.json"


def bundle(digest_hex: str) -> str:
    """A policy bundle: the digest is that of the file."""
    return f"bundles/{digest_hex}.json"
