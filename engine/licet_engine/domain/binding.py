"""What an approval binds to: the digests of exactly what was approved.

An approval is given on one model of one tier, made from certain data under certain restrictions, with certain
evaluations, under certain policies. Their digests, and the revision of the version, make one binding; if any of them
changes, the binding is another, and the approval no longer counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from licet_attestations import canonical


def binding_parts(
    *,
    model_digest_hex: str,
    revision: int,
    dataset_digests_hex: Sequence[str],
    evaluation_digests_hex: Mapping[str, str],
    policy_digest_hex: str,
    restrictions: Mapping[str, Any],
    tier: str,
) -> dict[str, Any]:
    """What a binding is made of, as canonical JSON takes it.

    Args:
        model_digest_hex: Digest of the model's files.
        revision: How often the version's files were replaced, from 1.
        dataset_digests_hex: Digests of every dataset behind the model, in any order.
        evaluation_digests_hex: By kind of check, the digest of its attestation for this very model digest.
        policy_digest_hex: Digest of the policies that speak on the promotion of models.
        restrictions: What binds the data behind the model, as policies see it, but for holds.
        tier: Risk tier of the version.
    """
    return {
        "data": sorted(dataset_digests_hex),
        "evaluation": dict(evaluation_digests_hex),
        "model": model_digest_hex,
        "policy": policy_digest_hex,
        "restrictions": dict(restrictions),
        "revision": revision,
        "tier": tier,
    }


BINDING_PATTERN = r"^([0-9a-f]{16,64})?$"
"""A binding, or enough of its beginning to know it by, or nothing."""


def binding_hex(**parts: Any) -> str:
    """The binding over what `binding_parts` takes: SHA-256 in hex over its canonical JSON."""
    return canonical.digest(binding_parts(**parts)).hex()


def changed_parts(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of a binding changed: names of its parts, evaluations and restrictions one by one (``evaluation:bias``).

    Empty if nothing changed, or if it is not known what the earlier binding was made of.
    """
    found: list[str] = []
    for name in sorted(now) if before else ():
        old, new = before.get(name), now[name]
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [f"{name}:{key}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        else:
            found.append(name)
    return found
