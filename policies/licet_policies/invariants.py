"""Invariants that come with the policies: requests that must never be allowed, or always, as Cedar ``permit`` policies.

Rules kept: an invariant decides nothing and stands in no bundle. It is a ``permit`` that bears ``@never`` or ``@always``
with a sentence, and its scope and conditions name the requests that the sentence speaks of. A pack's invariants read the
pack's parameters as its policies do.
"""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from licet_policies.packs import pack
from licet_policies.source import Policy, parse_policies

__all__ = ["bundle_invariants", "platform_invariants"]


@cache
def platform_invariants() -> tuple[Policy, ...]:
    """Give the platform's invariants, which hold of every bundle, in the order of their files."""
    folder = resources.files("licet_policies").joinpath("invariants")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".cedar")), key=lambda file: file.name)
    return tuple(policy for file in files for policy in parse_policies(file.read_text("utf-8"), "invariant"))


def bundle_invariants(bundle: Mapping[str, Any]) -> tuple[Policy, ...]:
    """Give the invariants of a bundle: the platform's, and those of each pack that it enforces, with its parameters.

    Args:
        bundle: As ``licet_policies.bundle.compose`` returned it.
    """
    enforced = [choice for choice in bundle["packs"] if choice["mode"] == "enforce"]
    packed = [one for choice in enforced for one in pack(choice["name"]).invariants(choice["parameters"])]
    return (*platform_invariants(), *packed)
