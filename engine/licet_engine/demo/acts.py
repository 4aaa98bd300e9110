"""The acts of the demo, one after the other: from a dataset to a promoted model, and what auditors make of it."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import httpx

from licet_engine.client import LicetClient
from licet_engine.commands.render import check_figures
from licet_engine.demo.endpoint import canary, regression
from licet_engine.demo.forgery import flip_one_byte, resign
from licet_engine.demo.stage import DATA, Stage, Unexpected, strip_ids

EXPIRES_AT_MS: Final = 1_924_992_000_000  # 2031-01-01
# Split, seed and threshold are fixed, so the reviews find the same each time: without the penalty a run does not pass that of bias, with it it
# does. There are so many epochs that one is still at work when it is killed, on a fast machine, too.
SPEC: Final[dict[str, Any]] = {
    "exclude": ["dmi"],
    "hidden": [8],
    "epochs": 1200,
    "seed": 0,
    "split_seed": 0,
    "held_out_micro": 400_000,
    "decision_threshold_micro": 200_000,
}
MITIGATED: Final[dict[str, Any]] = SPEC | {"mitigation_weight_micro": 30_000_000}
SHORT: Final[dict[str, Any]] = SPEC | {"epochs": 600, "seed": 1}
V1: Final = "northbank/credit-risk@1"
V2: Final = "northbank/credit-risk@2"
V3: Final = "northbank/credit-risk@3"
HALF_WAY: Final = 100


def register_dataset(stage: Stage) -> None:
    """The dataset is registered: classified, resident, contractually bound, sealed under the tenant's key."""
    ana = stage.as_("northbank/ana")
    answer = stage.ask(
        "ana registers Boston HMDA: confidential, protected attribute black, residency us, use credit-risk",
        lambda: ana.act(
            "dataset.register",
            "northbank/hmda",
            {
                **ana.upload(DATA).to_parameters(),
                "classification": "confidential",
                "protected": ["black"],
                "residency": ["us"],
                "uses": ["credit-risk"],
                "expires_at_ms": EXPIRES_AT_MS,
                "label": "deny",
                "missing": "drop",
            },
        ),
        allowed=True,
    )
    done = stage.done("northbank/ana", answer)
    stage.tell(f"{done.result['rows']} rows sealed, AES-256-GCM in chunks, key hierarchy root > tenant > object")
    header = DATA.read_bytes()[:64]
    leaks = [p for p in (stage.settings.data).rglob("*") if p.is_file() and header in p.read_bytes()]
    stage.holds("files on disk that hold the rows in the clear", len(leaks), 0)


def train_in_the_wrong_region(stage: Stage) -> None:
    """Training in an EU environment is asked for."""
    ana = stage.as_("northbank/ana")
    answer = stage.ask(
        "ana asks to train in eu-west",
        lambda: ana.act("training.launch", "northbank/run-eu", _launch("eu-west", SPEC)),
        allowed=False,
        by=("guardrail.residency.training",),
    )
    path = stage.explain("northbank/ana", answer).path
    steps = [] if path is None else [step["name"] for step in path["steps"]]
    stage.holds("the path to yes", steps, ["environment:us-east"])


def train(stage: Stage) -> None:
    """A model trains under a warrant in the sandbox, is killed half way, and resumes."""
    ci, ana = stage.as_("northbank/ci"), stage.as_("northbank/ana")
    answer = stage.ask(
        "the pipeline launches run-1 in us-east",
        lambda: ci.act("training.launch", "northbank/run-1", _launch("us-east", SPEC)),
        allowed=True,
    )
    if answer.operation is None:
        raise Unexpected("the run was not accepted")
    while True:
        now = ci.operation("northbank", answer.operation.id)
        if now.is_final:
            raise Unexpected("the run ended before it could be killed")
        if now.progress and now.progress.get("epoch", 0) >= HALF_WAY:
            break
        time.sleep(0.02)
    stage.tell(f"epoch {now.progress['epoch']}: SIGKILL to the worker, and so to the job in its sandbox")
    os.kill(stage.supervisor.pid("worker"), signal.SIGKILL)
    done = stage.done("northbank/ci", answer)
    stage.holds("attempts", done.attempt, 2)
    stage.tell(f"resumed from step {done.result['resumed_from_step']}; sandbox: {done.result['sandbox']['kind']}")
    stage.check("resumed from a checkpoint", done.result["resumed_from_step"] > 0, "yes", "yes", time.monotonic())
    whole = stage.ask(
        "ana launches the same once more, to run without a break",
        lambda: ana.act("training.launch", "northbank/run-whole", _launch("us-east", SPEC)),
        allowed=True,
    )
    mitigated = stage.ask(
        "ana launches run-2, trained with a demographic-parity penalty",
        lambda: ana.act("training.launch", "northbank/run-2", _launch("us-east", MITIGATED)),
        allowed=True,
    )
    third = stage.ask(
        "the pipeline launches run-3, from another seed, for half as long",
        lambda: ci.act("training.launch", "northbank/run-3", _launch("us-east", SHORT)),
        allowed=True,
    )
    same = stage.done("northbank/ana", whole)
    stage.holds(
        "weights of the broken run and the whole one are the same",
        done.result["digests"]["weights"] == same.result["digests"]["weights"],
        expected=True,
    )
    stage.done("northbank/ana", mitigated)
    stage.done("northbank/ci", third)


def register_model(stage: Stage) -> None:
    """The run's model is registered; a pickle, however disguised, is refused."""
    ci, ana = stage.as_("northbank/ci"), stage.as_("northbank/ana")
    with tempfile.TemporaryDirectory() as folder:
        disguised = Path(folder) / "model.safetensors"
        disguised.write_bytes(pickle.dumps({"weights": list(range(100))}))
        answer = stage.ask(
            "ana registers a file named model.safetensors that is a pickle",
            lambda: ana.model.register(
                "northbank/credit-risk", run="northbank/run-1", files={"model.safetensors": disguised}
            ),
            allowed=True,
        )
        stage.done("northbank/ana", answer, state="failed")
    answer = stage.ask(
        "the pipeline registers the model of run-1",
        lambda: ci.model.register("northbank/credit-risk", run="northbank/run-1", tier="high"),
        allowed=True,
    )
    done = stage.done("northbank/ci", answer)
    stage.tell(f"signed per OpenSSF Model Signing: {', '.join(sorted(done.result['files']))}")
    told = ana.act("model.read", V1).result["version"]
    stage.holds("restrictions inherited from the dataset: residency", told["restrictions"]["residency"], ["us"])
    stage.holds("... and permitted uses", told["restrictions"]["uses"], ["credit-risk"])


def ask_too_early(stage: Stage) -> None:
    """The pipeline asks to promote version 1 to prod."""
    ci = stage.as_("northbank/ci")
    answer = stage.ask(
        f"licet ask promote {V1} --to prod",
        lambda: ci.ask("model.promote", V1, {"stage": "prod"}),
        allowed=False,
        by=("sr-11-7.check.bias", "sr-11-7.approval.model-risk", "sr-11-7.approval.compliance"),
    )
    path = stage.explain("northbank/ci", answer).path
    steps = [] if path is None else sorted(step["name"] for step in path["steps"])
    wanted = sorted(
        [f"check:{kind}" for kind in ("technical", "bias", "explainability", "drift")]
        + ["approval:model-risk", "approval:compliance"]
    )
    stage.holds("the path to yes names", steps, wanted)


def check_models(stage: Stage) -> None:
    """Checks run in the sandbox and are attested: version 1 fails the bias review, version 2 passes."""
    ci, mei = stage.as_("northbank/ci"), stage.as_("northbank/mei")
    second = stage.ask(
        "the pipeline registers the model of run-2",
        lambda: ci.model.register("northbank/credit-risk", run="northbank/run-2", tier="high"),
        allowed=True,
    )
    stage.done("northbank/ci", second)
    third = stage.ask(
        "the pipeline registers the model of run-3",
        lambda: ci.model.register("northbank/credit-risk", run="northbank/run-3", tier="high"),
        allowed=True,
    )
    stage.done("northbank/ci", third)
    first = stage.ask("mei has version 1 checked", lambda: mei.act("model.check", V1), allowed=True)
    also = stage.ask("mei has version 2 checked", lambda: mei.act("model.check", V2), allowed=True)
    brief = stage.ask(
        "the pipeline has version 3 checked for what staging asks",
        lambda: ci.act("model.check", V3, {"kinds": ["technical"]}),
        allowed=True,
    )
    stage.done("northbank/ci", brief)
    for version, answer, expected in ((V1, first, ["bias"]), (V2, also, [])):
        done = stage.done("northbank/mei", answer)
        for found in done.result["results"]:
            stage.tell(_figures(found))
        failed = [found["kind"] for found in done.result["results"] if not found["passed"]]
        stage.holds(f"checks that {version} fails", failed, expected)
    stage.ask(
        f"licet ask promote {V1} --to prod, after its checks",
        lambda: ci.ask("model.promote", V1, {"stage": "prod"}),
        allowed=False,
        by=("sr-11-7.check.bias",),
    )


def approve(stage: Stage) -> None:
    """Nobody approves their own work; an approval is voided by swapping a file, and given again."""
    ana, ci, ravi, cora = (stage.as_(f"northbank/{name}") for name in ("ana", "ci", "ravi", "cora"))
    stage.ask(
        "ana, who made it, approves version 2",
        lambda: ana.model.approve(V2, "model-risk"),
        allowed=False,
        by=("guardrail.separation-of-duties.author",),
    )
    stage.ask(
        "the pipeline that ana owns approves version 2",
        lambda: ci.model.approve(V2, "model-risk"),
        allowed=False,
        by=("guardrail.separation-of-duties.services",),
    )
    given = stage.ask(
        "ravi approves version 2 for model-risk",
        lambda: ravi.model.approve(V2, "model-risk", reason="validated on held-out data", binding=_binding(ravi)),
        allowed=True,
    )
    stage.done("northbank/ravi", given)
    with tempfile.TemporaryDirectory() as folder:
        architecture = _swapped_architecture(stage, Path(folder))
        swapped = stage.ask(
            "ana swaps architecture.json of version 2 for one with another decision threshold",
            lambda: ana.model.register(V2, run="northbank/run-2", files={"architecture.json": architecture}),
            allowed=True,
        )
        stage.done("northbank/ana", swapped)
    stage.ask(
        f"licet ask promote {V2} --to prod, after the swap",
        lambda: ci.ask("model.promote", V2, {"stage": "prod"}),
        allowed=False,
        by=("sr-11-7.approval.model-risk", "sr-11-7.check.bias"),
    )
    back = stage.ask(
        "ana puts the file of the run back",
        lambda: ana.model.register(V2, run="northbank/run-2"),
        allowed=True,
    )
    stage.done("northbank/ana", back)
    stage.ask(
        f"licet ask promote {V2} --to prod: the checks count again, the approval does not",
        lambda: ci.ask("model.promote", V2, {"stage": "prod"}),
        allowed=False,
        by=("sr-11-7.approval.model-risk", "sr-11-7.approval.compliance"),
    )
    for name, client, track in (("ravi", ravi, "model-risk"), ("cora", cora, "compliance")):
        answer = stage.ask(
            f"{name} approves version 2 for {track}",
            lambda client=client, track=track: client.model.approve(  # type: ignore[misc]  # Defaults bind the turn.
                V2, track, reason="reviewed as it stands", binding=_binding(client)
            ),
            allowed=True,
        )
        stage.done(f"northbank/{name}", answer)


def _binding(client: LicetClient) -> str:
    """What a reviewer looks at, by the digest that an approval of it names."""
    found: str = client.act("model.read", V2).result["version"]["binding"]
    return found


def promote(stage: Stage) -> None:
    """Version 2 is promoted to prod: the same ask that was no before."""
    ci = stage.as_("northbank/ci")
    answer = stage.ask(
        f"licet model promote {V2} --to prod",
        lambda: ci.model.promote(V2, stage="prod", reason="replaces the manual scorecard"),
        allowed=True,
    )
    stage.done("northbank/ci", answer)
    told = stage.as_("northbank/mei").act("model.read", V2).result["version"]
    last = told["history"][0]
    stage.tell(
        f"the registry: {V2} on {told['stage']} by {last['promoted_by']}, decision {last['decision_id']}, "
        f"under policy {last['bundle_digest_hex'][:16]}: {last['reason']}"
    )
    stage.holds("stage of version 2", told["stage"], "prod")


def reach_over_the_wall(stage: Stage) -> None:
    """Principals of lakeside reach for what is northbank's, and for what does not exist."""
    lena = stage.as_("lakeside/lena")
    before = _attempts(stage)
    tried = (
        ("read the dataset", "dataset.read", "northbank/hmda"),
        ("download the model", "model.download", V2),
        ("export the evidence", "evidence.export", "northbank"),
        ("read a dataset that is not there", "dataset.read", "northbank/nothing"),
        ("export the evidence of a tenant that is not there", "evidence.export", "nobody"),
    )
    answers = set()
    for what, action, resource in tried:
        stage.ask(
            f"lena of lakeside tries to {what}",
            lambda action=action, resource=resource: lena.act(action, resource),  # type: ignore[misc]  # Defaults bind the turn.
            allowed=False,
        )
        answers.add(_raw_denial(stage, action, resource))
    stage.holds("different answers among them", len(answers), 1)
    stage.tell(
        "Each was asked twice, the second time to compare the answers byte by byte; four of the five name northbank."
    )
    stage.holds("attempts that stand in northbank's own log", _attempts(stage) - before, 8)


def hold(stage: Stage) -> None:
    """A hold is placed on the dataset: nothing of it or made from it is deleted."""
    cora, admin = stage.as_("northbank/cora"), stage.as_("northbank/admin")
    stage.ask(
        "cora places a hold on the dataset",
        lambda: cora.dataset.hold("northbank/hmda", "regulator's inquiry"),
        allowed=True,
    )
    for what, ask in (
        ("the dataset", lambda: admin.dataset.delete("northbank/hmda")),
        ("model version 1, made from it", lambda: admin.model.delete(V1)),
        ("the tenant's key", lambda: admin.key.destroy("northbank", "end of contract")),
    ):
        answer = stage.ask(f"the administrator deletes {what}", ask, allowed=False)
        deciding = sorted(policy.id for policy in answer.policies)
        stage.holds("decided by a hold", any("hold" in policy for policy in deciding), expected=True)


def evidence(stage: Stage) -> None:
    """Evidence is exported, and verified offline by a process that has only the attestations room."""
    cora = stage.as_("northbank/cora")
    answer = stage.ask(
        "cora exports the evidence of northbank", lambda: cora.evidence.export("northbank"), allowed=True
    )
    done = stage.done("northbank/cora", answer)
    archive = stage.folder / "northbank.evidence.zip"
    with archive.open("wb") as file:
        cora.fetch_artifact(done, file)
    trust_root = stage.folder / "trust-root.json"
    stage.tell(
        f"{archive} ({archive.stat().st_size // 1024} KiB, {done.result['entries']} entries), trust root {trust_root}"
    )
    code, told = _verify(archive, trust_root)
    report = json.loads(told) if code == 0 else {}
    stage.holds("licet_attestations verifies it; exit status", code, 0)
    stage.holds("isolation on record", report["isolation"]["answer"], "holds")
    proved = next(step["detail"] for step in report["steps"] if step["name"] == "policies")
    stage.tell(f"that the policies in force allow nothing across tenants, whatever is asked: {proved}")
    with tempfile.TemporaryDirectory() as folder:
        changed, forged = Path(folder) / "changed.zip", Path(folder) / "forged.zip"
        where = flip_one_byte(archive, changed)
        code, told = _verify(changed, trust_root)
        problem = json.loads(told) if code == 1 else {}
        stage.tell(f"one byte of {where} changed: refused at step {problem.get('step')}, in {problem.get('where')}")
        stage.holds("the refusal names the file that was changed", problem.get("where"), where)
        resign(archive, forged)
        code, told = _verify(forged, trust_root)
        problem = json.loads(told) if code == 1 else {}
        stage.tell(
            f"wholly signed anew with other keys: refused at step {problem.get('step')}, in {problem.get('where')}"
        )
        stage.holds("exit status for the re-signed copy", code, 1)
    code, told = _verify(archive, trust_root, "--replay", "licet_engine.commands.verify:replay")
    stage.holds("replay; exit status", code, 0)
    report = json.loads(told)
    stage.tell(f"{report['counts']['replayed']} decisions evaluated again from their records: all came out the same")
    stage.tell(report["isolation"]["sentence"])
    stage.tell("What this does not prove:")
    for limit in report["limits"]:
        stage.tell(f"- {limit}")


ACTS: Final[tuple[Callable[[Stage], None], ...]] = (
    register_dataset,
    train_in_the_wrong_region,
    train,
    register_model,
    ask_too_early,
    check_models,
    approve,
    promote,
    canary,
    regression,
    reach_over_the_wall,
    hold,
    evidence,
)


def _launch(environment: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"dataset": "northbank/hmda", "environment": environment, "use": "credit-risk", "cost": 5, "spec": spec}


def _figures(found: dict[str, Any]) -> str:
    return f"{found['kind']:<15} {'pass' if found['passed'] else 'FAIL'}  {check_figures(found)}"


def _swapped_architecture(stage: Stage, folder: Path) -> Path:
    """The architecture of version 2 with another decision threshold, as its author would edit it."""
    ana = stage.as_("northbank/ana")
    downloaded = stage.must(ana.act("model.download", V2))
    if downloaded.operation is None:
        raise Unexpected("the download was not accepted")
    buffer = BytesIO()
    ana.fetch_artifact(ana.wait(downloaded.operation).require(), buffer)
    with zipfile.ZipFile(buffer) as archive:
        architecture = json.loads(archive.read("architecture.json"))
    architecture["threshold_micro"] = 300_000
    path = folder / "architecture.json"
    path.write_text(json.dumps(architecture, sort_keys=True, separators=(",", ":")))
    return path


def _raw_denial(stage: Stage, action: str, resource: str) -> str:
    noun, _, verb = action.partition(".")
    token = (stage.folder / "credentials" / "lakeside.lena.token").read_text("ascii").strip()
    response = httpx.post(
        f"{stage.supervisor.url}/v1/{noun}/{verb}",
        json={"resource": resource},
        headers={"Authorization": f"Bearer {token}"},
    )
    return f"{response.status_code} {strip_ids(response.json())}"


def _attempts(stage: Stage) -> int:
    sam = stage.as_("northbank/sam")
    entries = sam.get_json("/v1/log/northbank/entries", params={"count": 1000})["entries"]
    return sum(entry["leaf"]["kind"] == "attempt" and entry["leaf"]["actor"] == "lakeside" for entry in entries)


def _verify(archive: Path, trust_root: Path, *more: str) -> tuple[int, str]:
    command = [sys.executable, "-I", "-m", "licet_attestations", str(archive), "--trust-root", str(trust_root)]
    ended = subprocess.run(
        [*command, "--tenant", "northbank", "--format", "json", *more], capture_output=True, text=True, check=False
    )
    return ended.returncode, ended.stdout
