"""The parameters of shipped packs that have no default, as all tests of policies choose them."""

from licet_policies import PackChoice, pack_names
from licet_policies.packs import Mode

PARAMETERS: dict[str, dict[str, object]] = {
    "eu-ai-act": {"high_risk_uses": ["credit-scoring"]},
    "export-control": {"regions": ["us"]},
    "hipaa": {"regions": ["us"]},
    "residency": {"regions": ["us"]},
}


def every_pack(mode: Mode = "enforce") -> list[PackChoice]:
    """Choose every pack that is shipped."""
    return [PackChoice(name, mode, PARAMETERS.get(name, {})) for name in pack_names()]
