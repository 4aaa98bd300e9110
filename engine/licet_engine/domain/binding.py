"""What an approval binds to: the digests of exactly what was approved.

An approval is given on one model of one tier, made from certain data under certain restrictions, with certain
evaluations, under certain policies. Their digests, and the revision of the version, make one binding; if any of them
changes, the binding is another, and the approval no longer counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from licet_attestations import canonical


def binding_hex(
    *,
    model_digest_hex: str,
    revision: int,
    dataset_digests_hex: Sequence[str],
    evaluation_digests_hex: Mapping[str, str],
    policy_digest_hex: str,
    restrictions: Mapping[str, Any],
    tier: str,
) -> str:
    """The binding of a model version as it stands now.

    Args:
        model_digest_hex: Digest of the model's files.
        revision: How often the version's files were replaced, from 1.
        dataset_digests_hex: Digests of every dataset behind the model, in any order.
        evaluation_digests_hex: By kind of check, the digest of its attestation for this very model digest.
        policy_digest_hex: Digest of the policies that speak on the promotion of models.
        restrictions: What binds the data behind the model, as policies see it, but for holds.
        tier: Risk tier of the version.

    Returns:
        SHA-256 in hex over their canonical JSON.
    """
    return canonical.digest(
        {
            "data": sorted(dataset_digests_hex),
            "evaluation": dict(evaluation_digests_hex),
            "model": model_digest_hex,
            "policy": policy_digest_hex,
            "restrictions": dict(restrictions),
            "revision": revision,
            "tier": tier,
        }
    ).hex()
