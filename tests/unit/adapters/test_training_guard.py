"""No warrant, no run: the conformance suite of the guard, over training and checks."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from licet_adapters.conformance import Case, GuardConformance, GuardedAct, World
from licet_adapters.conformance.world import TENANT
from licet_adapters.ports import CheckJob, InputFile, TrainingJob
from licet_adapters.training.checks import LocalChecks
from licet_adapters.training.local import LocalTraining
from licet_attestations import canonical

_ROWS = b"x,black,deny\n" + b"1,no,yes\n0,yes,no\n" * 20


def _file(folder: Path, name: str, data: bytes) -> InputFile:
    path = folder / name
    path.write_bytes(data)
    return InputFile(path=path, digest_hex=hashlib.sha256(data).hexdigest())


def _training(world: World) -> GuardedAct:
    job = TrainingJob(
        tenant=TENANT,
        operation_id="0" * 32,
        step="train",
        attempt=1,
        run=f"{TENANT}/any",
        parameters={"spec": {"seed": 0, "features": [{"name": "x"}], "label": "deny", "epochs": 1}},
        inputs={"train.csv": _file(world.directory, "train.csv", _ROWS)},
        workdir=world.directory / "work",
    )
    adapter = LocalTraining(world.context("local-training"))
    return GuardedAct(
        action="training.launch",
        operation="training.run",
        other_action="dataset.read",
        other_operation="objects.get",
        resources=job.resources(),
        parameters=job.parameters,
        act=lambda warrant: adapter.run(warrant, job, lambda _metric: None, lambda: False),
        has_happened=job.workdir.exists,
    )


def _checks(world: World) -> GuardedAct:
    tensors = {
        "layers.0.bias": np.zeros(1, np.float32),
        "layers.0.weight": np.ones((1, 1), np.float32),
        "normalise.mean": np.zeros(1, np.float32),
        "normalise.scale": np.ones(1, np.float32),
    }
    declaration = {
        "v": 1,
        "kind": "mlp",
        "task": "binary-classification",
        "features": [{"name": "x", "encoding": "number"}],
        "hidden": [],
        "activation": "tanh",
        "threshold_micro": 500_000,
        "target": "deny",
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
    }
    job = CheckJob(
        tenant=TENANT,
        operation_id="0" * 32,
        step="check",
        attempt=1,
        version=f"{TENANT}/any@1",
        parameters={"kinds": ["drift"], "thresholds": {"drift_max_features": 0}, "spec": {"groups": ["black"]}},
        model={
            "model.safetensors": _file(world.directory, "model.safetensors", safetensors.numpy.save(tensors)),
            "architecture.json": _file(world.directory, "architecture.json", canonical.dumps(declaration)),
        },
        inputs={name: _file(world.directory, name, _ROWS) for name in ("train.csv", "held-out.csv")},
        workdir=world.directory / "work",
    )
    adapter = LocalChecks(world.context("local-checks"))
    return GuardedAct(
        action="model.check",
        operation="checks.run",
        other_action="dataset.read",
        other_operation="objects.get",
        resources=job.resources(),
        parameters=job.parameters,
        act=lambda warrant: adapter.run(warrant, job, lambda _metric: None, lambda: False),
        has_happened=job.workdir.exists,
    )


@pytest.mark.parametrize("case", GuardConformance("local-training", _training).cases(), ids=str)
def test_training_keeps_what_every_adapter_must(case: Case) -> None:
    case.run()


@pytest.mark.parametrize("case", GuardConformance("local-checks", _checks).cases(), ids=str)
def test_checks_keep_what_every_adapter_must(case: Case) -> None:
    case.run()
