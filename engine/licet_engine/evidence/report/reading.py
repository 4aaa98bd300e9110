"""What a report is made of, read once for all files that are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from licet_attestations.statement import is_sha256_hex
from licet_engine.evidence.contents import Contents, Scope
from licet_engine.evidence.report.bundles import Summary, mapped_policies, summary_of
from licet_engine.evidence.report.lineage import Lineage, lineage_of
from licet_engine.evidence.report.story import Story, story_of

_MAX_TITLED: Final = 200


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of an archive.

    Attributes:
        scope: What it is of.
        isolation: The isolation answer.
        story: What happened.
        lineage: Where model versions came from.
        bundles: What decided, by digest.
    """

    scope: Scope
    isolation: Mapping[str, Any]
    story: Story
    lineage: Lineage
    bundles: Mapping[str, Summary]


def read(contents: Contents) -> Reading:
    """Read an archive: its entries once, its attestations once, and each bundle that decided."""
    story = story_of(contents)
    shown, _, _ = story.refusing.top(_MAX_TITLED)
    wanted = mapped_policies() | {each.name for each in shown}
    named = (digest for digest in story.bundles if is_sha256_hex(digest))
    bundles = {digest: summary_of(digest, contents.bundle(digest), wanted) for digest in named}
    return Reading(contents.scope, contents.isolation, story, lineage_of(contents), bundles)
