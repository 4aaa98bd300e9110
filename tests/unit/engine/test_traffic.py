"""What is possible on an endpoint: where a roll-back goes, and which version may come."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from licet_engine.domain.refs import Ref
from licet_engine.lifecycle import deploying
from licet_engine.lifecycle.traffic import RollBackEndpoint, ask_roll_back
from licet_engine.store.tables import Deployment, Endpoint, ModelVersion

REF = Ref("northbank", "credit")


def deployment(version: int, state: str, fallback: str) -> Deployment:
    return Deployment(
        tenant_id="northbank",
        id=f"operation-{version}-{state}",
        endpoint="credit",
        model="scorer",
        version=version,
        model_digest_hex="0" * 64,
        strategy="canary",
        fallback=fallback,
        state=state,
        deployed_by="ci",
        decision_id="d",
        created_at_ms=version,
    )


def endpoint_row(state: str) -> Endpoint:
    return Endpoint(
        tenant_id="northbank",
        name="credit",
        model="scorer",
        region="us",
        use="credit",
        state=state,
        weights={"3": 100},
        created_at_ms=1,
        updated_at_ms=1,
    )


def rolled_back_to(*newest_first: Deployment) -> Any:
    row = endpoint_row("live")
    view = SimpleNamespace(
        endpoint=lambda _: row,
        deployments=lambda _: list(newest_first),
        model_version=lambda *_: SimpleNamespace(digest_hex="0" * 64),
        endpoint_entity=lambda _: {},
        has_open_operation=lambda _: False,
    )
    proposal = ask_roll_back(cast("Any", view), cast("Any", None), REF, RollBackEndpoint(), cast("Any", None))
    assert proposal is not None
    return proposal


@pytest.mark.parametrize(
    ("before", "back"),
    [
        ([deployment(2, "superseded", "1"), deployment(1, "superseded", "")], "2"),
        ([deployment(2, "rolled-back", "1"), deployment(1, "superseded", "")], "1"),
        # Deployed anew, it is one to return to.
        ([deployment(2, "superseded", "1"), deployment(2, "rolled-back", "1"), deployment(1, "superseded", "")], "2"),
    ],
)
def test_a_roll_back_goes_to_the_version_before_that_was_not_rolled_back_itself(
    before: list[Deployment], back: str
) -> None:
    proposal = rolled_back_to(deployment(3, "live", "2"), *before)
    assert proposal.conflict is None
    assert proposal.parameters["weights"] == {back: 100}


def test_where_every_version_before_was_rolled_back_that_is_said() -> None:
    before = [deployment(2, "rolled-back", "1"), deployment(1, "rolled-back", "2")]
    proposal = rolled_back_to(deployment(3, "live", "2"), *before)
    assert proposal.parameters is None
    assert "every version before on northbank/credit was rolled back" in str(proposal.conflict)


@pytest.mark.parametrize(
    ("state", "use", "told"), [("live", "fraud", "is for credit"), ("retired", "fraud", ""), ("live", "credit", "")]
)
def test_an_endpoint_keeps_its_use_while_it_stands(state: str, use: str, told: str) -> None:
    present = endpoint_row(state)
    view = SimpleNamespace(has_open_operation=lambda _: False, deployments=lambda _: [])
    version = ModelVersion(
        tenant_id="northbank", model="scorer", version=4, run="r", use=use, state="ready", stage="prod", created_at_ms=1
    )
    conflict = deploying._cannot_deploy(cast("Any", view), REF, present, version, "canary")
    assert (told in str(conflict)) if told else conflict is None
