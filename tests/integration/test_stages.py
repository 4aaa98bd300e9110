"""A model's way over the stages and out again, and what its people may not do on it: one tenant, two versions of one model."""

from __future__ import annotations

import io
import json
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from licet_engine.client import Answer, LicetClient
from licet_engine.lifecycle.tenants import Tenants

sys.path.append(str(Path(__file__).parent))
from service_world import Installation, poll, problem, table  # The line above finds it.

pytestmark = pytest.mark.slow

BANK = "stagebank"


def deciding(answer: Answer) -> set[str]:
    return {policy.id for policy in answer.policies}


def told_of(world: Installation, version: str) -> dict[str, Any]:
    found: dict[str, Any] = world.client(f"{BANK}/mei").act("model.read", version, {}).require().result["version"]
    return found


def approve(world: Installation, who: str, version: str, track: str, **more: Any) -> Answer:
    body = {"track": track, "binding": told_of(world, version)["binding"], "reason": "looked at", **more}
    return world.client(f"{BANK}/{who}").act("model.approve", version, body)


def give(world: Installation, who: str, version: str, track: str, **more: Any) -> None:
    assert world.done(world.client(f"{BANK}/{who}"), approve(world, who, version, track, **more)).state == "done"


@pytest.fixture(scope="module")
def bank(world: Installation) -> str:
    """A tenant whose bundle has no packs: the guardrails alone speak on promotion."""
    world.people(BANK, "us")
    assert world.register(f"{BANK}/ana", "loans", table(), residency=["us"]).state == "done"
    sam = world.client(f"{BANK}/sam")
    bundle = world.publish(f"{BANK}/sam", {"packs": [], "policies": ""})
    # Who wrote it does not put it in force; another does, and it is in force with that answer.
    assert "guardrail.separation-of-duties.policy" in deciding(sam.act("policy.activate", bundle, {}))
    world.client(f"{BANK}/all").act("policy.activate", bundle, {}).require()
    with world.http(f"{BANK}/all") as http:
        again = http.post("/v1/policy/activate", json={"resource": bundle, "parameters": {}})
        problem(again, 409, "conflict")
    ci = world.client(f"{BANK}/ci")
    launch = {"dataset": f"{BANK}/loans", "environment": "us-east", "use": "credit-risk", "spec": {"epochs": 20}}
    assert world.done(ci, ci.act("training.launch", f"{BANK}/run-1", launch)).state == "done"
    return BANK


def registered(world: Installation, model: str, **body: Any) -> str:
    ci = world.client(f"{BANK}/ci")
    answer = ci.act("model.register", f"{BANK}/{model}", {"run": f"{BANK}/run-1", "tier": "high"} | body)
    ended = world.done(ci, answer)
    assert ended.state == "done", ended
    version: str = answer.result["version"]
    return version


def promoted(world: Installation, version: str) -> None:
    give(world, "mei", version, "model-risk")
    ci = world.client(f"{BANK}/ci")
    assert world.done(ci, ci.act("model.promote", version, {"stage": "prod"})).state == "done"


def stages(world: Installation, *versions: str) -> list[str]:
    return [told_of(world, version)["stage"] for version in versions]


def test_versions_take_a_stage_return_to_it_and_are_retired_each_by_itself(world: Installation, bank: str) -> None:
    assert bank
    first, second = registered(world, "risk"), registered(world, "risk")
    promoted(world, first)
    promoted(world, second)
    assert stages(world, first, second) == ["none", "prod"]
    mei, admin = world.client(f"{BANK}/mei"), world.client(f"{BANK}/admin")
    assert world.done(mei, mei.act("model.roll-back", second, {"reason": "too slow"})).state == "done"
    assert stages(world, first, second) == ["prod", "none"]
    history = told_of(world, first)["history"]
    assert [row["stage"] for row in history] == ["prod", "prod"]
    assert history[0]["promoted_by"] == "mei"
    assert history[0]["reason"] == "too slow"
    with world.http(f"{BANK}/mei") as http:
        further = http.post("/v1/model/roll-back", json={"resource": first, "parameters": {}})
        problem(further, 409, "conflict")
    assert world.done(admin, admin.act("model.retire", first, {})).state == "done"
    assert world.done(admin, admin.act("model.retire", second, {})).state == "done"
    # That one was retired later is no reason for the other to come back.
    assert stages(world, first, second) == ["retired", "retired"]
    ci = world.client(f"{BANK}/ci")
    for version in (first, second):
        answer = ci.act("model.promote", version, {"stage": "prod"})
        assert "guardrail.vocabulary.live" in deciding(answer)


def test_a_deployment_that_lacks_an_approval_is_told_so_and_allowed_once_it_is_given(
    world: Installation, bank: str
) -> None:
    version = registered(world, "lapsed")
    promoted(world, version)
    ci = world.client(f"{bank}/ci")
    # It was approved under other policies: with these in force, the approval is of something else.
    closed = (
        '@id("own.nowhere") @title("Nowhere is closed") @advice("Go elsewhere.") @severity("low") @owner("desk")'
        ' forbid (principal, action == Action::"model.promote", resource is ModelVersion) when { context.region == "nowhere" };'
    )
    published = world.publish(f"{bank}/sam", {"packs": [], "policies": closed})
    world.client(f"{bank}/all").act("policy.activate", published, {}).require()
    asked = {"version": version, "alarms": [{"kind": "error-rate", "threshold_micro": 20_000, "window_s": 60}]}
    denied = ci.ask("endpoint.deploy", f"{bank}/lapsed", asked)
    assert deciding(denied) == {"guardrail.endpoints.approved"}
    explanation = ci.explain(denied)
    assert explanation is not None
    (step,) = explanation.path["steps"]
    assert (step["name"], explanation.is_approval_pending) == ("approval:engineering", True)
    assert f"licet approval request {version} --track engineering" in step["describe"]
    ci.act("model.request", version, {"track": "engineering"}).require()
    waiting = ci.explain(ci.ask("endpoint.deploy", f"{bank}/lapsed", asked))
    assert waiting is not None
    assert waiting.path["steps"][0]["describe"].startswith("wait for track engineering, which has been asked")
    give(world, "mei", version, "model-risk")
    assert ci.ask("endpoint.deploy", f"{bank}/lapsed", asked).allowed
    # The record still says no, and what would be decided now is told beside it.
    again = ci.explain(denied)
    assert again is not None
    assert again.decision["decision"] == "deny"
    assert again.now["decision"] == "allow"


def test_with_the_last_version_of_a_run_what_the_run_kept_is_destroyed(world: Installation, bank: str) -> None:
    ana = world.client(f"{bank}/ana")
    launch = {"dataset": f"{bank}/loans", "environment": "us-east", "use": "credit-risk", "spec": {"epochs": 2}}
    before = world.objects(bank)
    assert world.done(ana, ana.act("training.launch", f"{bank}/run-doomed", launch)).state == "done"
    kept = world.objects(bank) - before
    assert len(kept) == 2
    doomed, other = (registered(world, name, run=f"{bank}/run-doomed") for name in ("doomed", "other"))
    admin = world.client(f"{bank}/admin")
    assert world.done(admin, admin.act("model.delete", doomed, {})).state == "done"
    assert kept <= world.objects(bank)
    assert world.done(admin, admin.act("model.delete", other, {})).state == "done"
    assert world.objects(bank) == before
    with world.http(f"{bank}/ci") as http:
        body = {"resource": f"{bank}/doomed", "parameters": {"run": f"{bank}/run-doomed", "tier": "high"}}
        problem(http.post("/v1/model/register", json=body), 409, "conflict")


def test_an_approval_names_what_was_looked_at(world: Installation, bank: str) -> None:
    version = registered(world, "bound")
    assert bank
    with world.http(f"{BANK}/mei") as http:
        for binding in ({}, {"binding": "0" * 64}):
            body = {"resource": version, "parameters": {"track": "model-risk", **binding}}
            problem(http.post("/v1/model/approve", json=body), 409, "conflict")
    assert told_of(world, version)["approvals"] == []
    # Its first characters will do, as people pass them on.
    give(world, "mei", version, "model-risk", binding=told_of(world, version)["binding"][:16])
    assert [row["track"] for row in told_of(world, version)["approvals"]] == ["model-risk"]


def test_a_rejection_also_ends_what_was_approved_before_the_data_was_classified_anew(
    world: Installation, bank: str
) -> None:
    version = registered(world, "rejected")
    give(world, "mei", version, "model-risk")
    cora = world.client(f"{bank}/cora")
    cora.act("dataset.classify", f"{bank}/loans", {"classification": "restricted"}).require()
    give(world, "mei", version, "model-risk", verdict="rejected")
    cora.act("dataset.classify", f"{bank}/loans", {"classification": "confidential"}).require()
    # The binding is the old one again; the approval of it is not.
    assert told_of(world, version)["approvals"] == []
    answer = world.client(f"{bank}/ci").act("model.promote", version, {"stage": "prod"})
    assert "guardrail.approvals.bound" in deciding(answer)


def test_a_denied_promotion_without_a_region_is_explained(world: Installation, bank: str) -> None:
    denied = world.client(f"{bank}/ci").ask("model.promote", f"{bank}/never-there@1", {"stage": "prod"})
    assert not denied.allowed
    with world.http(f"{bank}/ci") as http:
        answer = http.get(f"/v1/decisions/{bank}/{denied.decision_id}/explain")
    assert answer.status_code == 200, answer.text
    assert answer.json()["explanation"]["decision"] == "deny"


def test_a_region_is_one_of_the_tenants_and_prod_is_not_left_by_promotion(world: Installation, bank: str) -> None:
    version = registered(world, "regional")
    give(world, "mei", version, "model-risk")
    with world.http(f"{bank}/ci") as http:

        def refused(**parameters: str) -> dict[str, Any]:
            body = {"resource": version, "parameters": parameters}
            return problem(http.post("/v1/model/promote", json=body), 409, "conflict")

        # The data behind it may go nowhere but us, so nothing else gets past the guardrail either.
        answer = world.client(f"{bank}/ci").act("model.promote", version, {"stage": "prod", "region": "mars"})
        assert "guardrail.residency.promotion" in deciding(answer)
        ci = world.client(f"{bank}/ci")
        assert world.done(ci, ci.act("model.promote", version, {"stage": "prod", "region": "us"})).state == "done"
        assert "prod" in refused(stage="staging")["detail"]
    assert stages(world, version) == ["prod"]


def test_who_is_no_longer_allowed_to_read_fetches_nothing_that_was_read_before(world: Installation, bank: str) -> None:
    world.person(f"{bank}/rita", roles=["data-scientist"])
    rita, admin = world.client(f"{bank}/rita"), world.client(f"{bank}/admin")
    ended = world.done(rita, rita.act("dataset.read", f"{bank}/loans", {}))
    path = f"/v1/operations/{bank}/{ended.id}/artifact"
    with world.http(f"{bank}/rita") as http:
        assert http.get(path).status_code == 200
        admin.act("person.administer", f"{bank}/rita", {"kind": "person", "roles": []}).require()
        problem(http.get(path), 403, "denied")


def test_an_old_answer_is_not_told_again_to_who_may_not_act_any_more(world: Installation, bank: str) -> None:
    world.person(f"{bank}/ines", roles=["data-scientist"])
    body = {"resource": f"{bank}/loans", "parameters": {}}
    with world.http(f"{bank}/ines") as http:
        headers = {"Idempotency-Key": "once"}
        assert http.post("/v1/dataset/read", json=body, headers=headers).status_code == 202
        assert http.post("/v1/dataset/read", json=body, headers=headers).status_code == 202
        admin = world.client(f"{bank}/admin")
        gone = {"kind": "person", "roles": ["data-scientist"], "active": False}
        admin.act("person.administer", f"{bank}/ines", gone).require()
        problem(http.post("/v1/dataset/read", json=body, headers=headers), 403, "denied")


def test_what_is_wrong_with_a_question_is_told_after_an_allow_alone(world: Installation, bank: str) -> None:
    launch = {"dataset": f"{bank}/loans", "environment": "us-east", "use": "credit-risk"}
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"exclude": ["nosuch"]}, "it has deny, income, minor, ratio"),
        ({"group": "ratio"}, "protected: minor"),
        ({"exclude": ["deny"]}, "deny: the label and protected columns"),
    )
    for spec, told_of_it in wrong:
        body = {"resource": f"{bank}/run-wrong", "parameters": {**launch, "spec": spec}}
        size = world.size(bank)
        with world.http(f"{bank}/ana") as http:
            told = problem(http.post("/v1/training/launch", json=body), 400, "invalid-input")
        assert told_of_it in told["detail"]
        assert world.size(bank) > size
        with world.http(f"{bank}/mei") as http:
            denied = http.post("/v1/training/launch", json=body)
        problem(denied, 403, "denied")
        assert told_of_it not in denied.text
    # Which environments there are, every member may list: to them one that is not declared is a mistake in what they ask.
    undeclared = {"resource": f"{bank}/run-wrong", "parameters": launch | {"environment": "mars"}}
    size = world.size(bank)
    with world.http(f"{bank}/ana") as http:
        told = problem(http.post("/v1/training/launch", json=undeclared), 400, "invalid-input")
    assert "'mars' is not declared" in told["detail"]
    assert world.size(bank) == size


def test_every_protected_column_is_reviewed_whatever_the_run_compared(world: Installation) -> None:
    lines = table().decode().splitlines()
    both = "\n".join([lines[0] + ",other", *(f"{line},{'yes' if i % 4 else 'no'}" for i, line in enumerate(lines[1:]))])
    ended = world.register("northbank/ana", "both", (both + "\n").encode(), protected=["minor", "other"])
    assert ended.state == "done", ended
    ana, mei = world.client("northbank/ana"), world.client("northbank/mei")
    spec = {"epochs": 5, "group": "other", "mitigation_weight_micro": 1_000_000}
    launch = {"dataset": "northbank/both", "environment": "us-east", "use": "credit-risk", "spec": spec}
    assert world.done(ana, ana.act("training.launch", "northbank/run-both", launch)).state == "done"
    answer = ana.act("model.register", "northbank/both", {"run": "northbank/run-both"})
    assert world.done(ana, answer).state == "done"
    result = bias_review(world, mei, answer.result["version"])
    groups = result["detail"]["groups"]
    assert set(groups) == {"minor", "other"}
    worst = min(group["selection_rate_ratio_micro"] for group in groups.values())
    assert result["figures"]["selection_rate_ratio_micro"] == worst


def bias_review(world: Installation, client: LicetClient, version: str) -> dict[str, Any]:
    checked = world.done(client, client.act("model.check", version, {"kinds": ["bias"]}))
    assert checked.state == "done", checked
    assert checked.result is not None
    result: dict[str, Any]
    (result,) = checked.result["results"]
    return result


def test_protected_data_calls_for_the_high_tier(world: Installation, trained: str) -> None:
    assert trained
    answer = world.client("northbank/ci").act(
        "model.register", "northbank/lowly", {"run": "northbank/run-1", "tier": "low"}
    )
    assert deciding(answer) == {"sr-11-7.tier.confidential", "sr-11-7.tier.protected"}


def test_a_run_that_is_cancelled_makes_no_model(world: Installation, bank: str) -> None:
    ana = world.client(f"{bank}/ana")
    launch = {"dataset": f"{bank}/loans", "environment": "us-east", "use": "credit-risk", "spec": {"epochs": 100_000}}
    answer = ana.act("training.launch", f"{bank}/run-long", launch | {"cost": 50})
    if not answer.allowed:  # The budget of the tests' tenants may be spent by now; it is theirs to raise.
        budget = {"budgets": {"training": 1_000}}
        world.client(f"{bank}/admin").act("tenant.administer", bank, budget).require()
        answer = ana.act("training.launch", f"{bank}/run-long", launch)
    operation = answer.require().operation
    assert operation is not None
    poll("the job to report", lambda: ana.operation(operation.tenant, operation.id).progress, 60.0)
    running = ana.act("run.read", f"{bank}/run-long", {}).require().result["run"]
    assert (running["state"], running["attempt"]) == ("running", 1)
    ana.act("training.cancel", f"{bank}/run-long", {}).require()
    ended = ana.wait(operation, timeout_s=60)
    assert ended.state == "refused", ended
    told = ana.act("run.read", f"{bank}/run-long", {}).require().result["run"]
    assert told["state"] == "cancelled"
    # Nothing of it stays: no checkpoint, no half-made model.
    work = world.settings.worker_data / "work" / bank / operation.id
    poll("its folder to go", lambda: not work.exists(), 10.0)


def test_a_suspended_tenant_may_do_nothing_until_it_is_resumed(world: Installation, bank: str) -> None:
    operator, ana = world.client("platform/operator"), world.client(f"{bank}/ana")
    assert ana.act("run.read", f"{bank}/run-1", {}).allowed
    operator.act("tenant.suspend", bank, {}).require()
    try:
        for action, ref in (("run.read", f"{bank}/run-1"), ("dataset.read", f"{bank}/loans")):
            assert "guardrail.active.tenant" in deciding(ana.act(action, ref, {}))
        # What it did to the tenant stands in the tenant's own log.
        kinds = [record.get("event") for _, record in world.entries(bank)]
        assert "tenant-suspended" in kinds
    finally:
        operator.act("tenant.suspend", bank, {"suspended": False}).require()
    assert ana.act("run.read", f"{bank}/run-1", {}).allowed


def test_weights_that_give_everybody_the_same_answer_do_not_pass_the_bias_review(
    world: Installation, trained: str
) -> None:
    assert trained
    ana, mei = world.client("northbank/ana"), world.client("northbank/mei")
    answer = ana.act("model.register", "northbank/lenient", {"run": "northbank/run-1"})
    assert world.done(ana, answer).state == "done"
    version = answer.result["version"]
    made = _architecture(world, ana, version)
    made["threshold_micro"] = 1_000_000
    upload = world.upload("northbank/ana", json.dumps(made, sort_keys=True, separators=(",", ":")).encode())
    swap = {"run": "northbank/run-1", "files": {"architecture.json": upload}}
    assert world.done(ana, ana.act("model.register", version, swap)).state == "done"
    result = bias_review(world, mei, version)
    assert result["figures"]["selection_rate_ratio_micro"] == 1_000_000
    assert result["passed"] is False
    assert result["detail"]["decides"] is False


def _architecture(world: Installation, client: LicetClient, version: str) -> dict[str, Any]:
    ended = world.done(client, client.act("model.download", version, {}))
    target = io.BytesIO()
    client.fetch_artifact(ended, target)
    with zipfile.ZipFile(target) as archive:
        found: dict[str, Any] = json.loads(archive.read("architecture.json"))
    return found


def test_a_clock_that_is_set_back_revives_nothing(world: Installation, bank: str) -> None:
    # Nobody here can set the machine's clock; what the engine takes for the time is looked at instead.
    tenants = Tenants(world.engine)
    ahead_ms = time.time_ns() // 1_000_000 + 3_600_000
    tenants.seen(bank, 0, ahead_ms)
    with tenants.view(bank) as found:
        assert found is not None
        assert found[0].now_ms >= ahead_ms
    assert tenants.now_ms(bank) >= ahead_ms
    assert tenants.now_ms("lakeside") < ahead_ms
