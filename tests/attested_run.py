"""One real run of an installation that leaves an attestation of every kind: trained, checked, approved, promoted, deployed, rolled back, deleted.

Found by the tests that need it through ``sys.path``. It takes its time, so it is made once for all tests of a file.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlmodel import select

sys.path.append(str(Path(__file__).parent / "integration"))
from service_world import Installation, poll  # The line above finds it.

from licet_attestations.dsse import Envelope
from licet_attestations.rotation import current
from licet_attestations.statement import Statement
from licet_attestations.trustroot import TrustRoot
from licet_engine import rotating
from licet_engine.client import LicetClient
from licet_engine.client_serving import rows_request
from licet_engine.commands.attestations import files_of
from licet_engine.domain.refs import now_ms
from licet_engine.store.db import tenant_session
from licet_engine.store.tables import Attestation

BANK: Final = "northbank"
MODEL: Final = f"{BANK}/risk"
FIRST, SECOND = f"{MODEL}@1", f"{MODEL}@2"
ENDPOINT: Final = f"{BANK}/scoring"
CALM: Final = {"kind": "error-rate", "threshold_micro": 900_000, "window_s": 5, "min_count": 1000}
NERVOUS: Final = {"kind": "p95-latency", "threshold_us": 1, "window_s": 5, "min_count": 10}
OWN: Final = (
    '@id("own.nowhere") @title("Nowhere is closed") @advice("Go elsewhere.") @severity("low") @owner("desk")'
    ' forbid (principal, action == Action::"model.promote", resource is ModelVersion) when { context.region == "nowhere" };'
)


@dataclass(frozen=True)
class Attested:
    """What a run left.

    Attributes:
        world: The installation, still running.
        folder: Of files: the model, the evidence archive, the trust root.
        decision: Of the promotion.
        bundle: That was activated.
    """

    world: Installation
    folder: Path
    decision: str
    bundle: str
    results: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trust_root(self) -> Path:
        return self.world.settings.trust_root

    @property
    def model(self) -> Path:
        """The folder of the deployed model, with its signature."""
        return self.folder / "model"

    @property
    def archive(self) -> Path:
        return self.folder / "northbank.evidence.zip"

    @property
    def pinned(self) -> Path:
        """The trust root that stood before a key gave way."""
        return self.folder / "trust-root-before.json"

    def envelopes(self, tenant: str = BANK) -> list[bytes]:
        """The signed statements of a tenant, in the order of its log."""
        with tenant_session(self.world.engine, tenant) as session:
            rows = session.exec(select(Attestation)).all()
        return [row.envelope.encode() for row in sorted(rows, key=lambda row: row.leaf_index or 0)]

    def statements(self) -> list[tuple[Statement, bytes]]:
        """What they say, beside them."""
        return [(Statement.from_bytes(Envelope.from_json(data).payload), data) for data in self.envelopes()]


def _rows(odd: int = 0) -> bytes:
    """A table in which ``ratio`` tells ``deny`` but for some noise, and ``minor`` tells nothing."""
    lines = ["income,ratio,minor,deny"]
    for i in range(2000):
        ratio, noise = (i * 37 % 100) / 100, (i * 7919 % 97) / 97
        deny = "yes" if ratio + 0.3 * noise > 0.75 else "no"
        lines.append(f"{(i * 53 % 90) / 10 + odd},{ratio},{'yes' if i * 31 % 7 > 3 else 'no'},{deny}")
    return ("\n".join(lines) + "\n").encode()


def _ended(world: Installation, who: str, answer: Any) -> Any:
    ended = world.done(world.client(who), answer)
    assert ended.state == "done", ended
    return ended


def _version(world: Installation, number: int) -> None:
    ci, mei = world.client(f"{BANK}/ci"), world.client(f"{BANK}/mei")
    spec = {"epochs": 200, "seed": number}
    launch = {"dataset": f"{BANK}/loans", "environment": "us-east", "use": "credit-risk", "spec": spec}
    _ended(world, f"{BANK}/ci", ci.act("training.launch", f"{BANK}/run-{number}", launch))
    registered = ci.act("model.register", MODEL, {"run": f"{BANK}/run-{number}", "tier": "high"})
    _ended(world, f"{BANK}/ci", registered)
    version = f"{MODEL}@{number}"
    checked = _ended(world, f"{BANK}/mei", mei.act("model.check", version, {}))
    assert all(found["passed"] for found in checked.result["results"]), checked.result["results"]
    binding = mei.act("model.read", version, {}).require().result["version"]["binding"]
    for name, track in (("mei", "model-risk"), ("cora", "compliance")):
        approval = {"track": track, "binding": binding, "reason": "the figures hold"}
        _ended(world, f"{BANK}/{name}", world.client(f"{BANK}/{name}").act("model.approve", version, approval))


def _on_endpoint(world: Installation, number: int, alarm: dict[str, Any]) -> None:
    ci = world.client(f"{BANK}/ci")
    body: dict[str, Any] = {"alarms": [alarm], "replicas": {"min": 1, "max": 1, "idle_s": 0}}
    answer = ci.endpoint.deploy(ENDPOINT, f"{MODEL}@{number}", strategy="blue-green", **body)
    _ended(world, f"{BANK}/ci", answer)


def _returned(world: Installation) -> int | None:
    """Where the log says that an alarm returned the traffic."""
    entries = enumerate(world.entries(BANK))
    return next((i for i, (leaf, told) in entries if leaf.kind == "traffic" and told["kind"] == "rolled-back"), None)


def _serve(world: Installation) -> tuple[str, int]:
    """Both versions take the stage and the endpoint; the second is returned by an alarm, put there again, and leaves both."""
    ci, mei, ana = (world.client(f"{BANK}/{name}") for name in ("ci", "mei", "ana"))
    decision = ""
    for number in (1, 2):
        promoted = ci.act("model.promote", f"{MODEL}@{number}", {"stage": "prod"})
        decision = promoted.decision_id
        _ended(world, f"{BANK}/ci", promoted)
        _on_endpoint(world, number, CALM if number == 1 else NERVOUS)

    def invoke() -> int | None:
        ana.endpoint.invoke(ENDPOINT, rows_request([{"income": 4.0, "ratio": 0.3}]))
        return _returned(world)

    returned: int = poll("an alarm to return the traffic", invoke)
    _on_endpoint(world, 2, CALM)
    _ended(world, f"{BANK}/ci", ci.endpoint.roll_back(ENDPOINT, reason="too many complaints"))
    _ended(world, f"{BANK}/mei", mei.act("model.roll-back", SECOND, {"reason": "too many complaints"}))
    return decision, returned


def _policies(world: Installation) -> str:
    bundle = world.publish(f"{BANK}/sam", {"packs": [{"name": "sr-11-7"}], "policies": OWN})
    world.client(f"{BANK}/all").act("policy.activate", bundle, {}).require()
    return bundle


def _fetch(world: Installation, who: str, answer: Any, target: Path) -> None:
    client = world.client(who)
    with target.open("wb") as file:
        client.fetch_artifact(_ended(world, who, answer), file)


def perform(world: Installation, folder: Path) -> Attested:
    """Do everything that is attested, in a started installation."""
    for tenant, region in ((BANK, "us"), ("lakeside", "eu")):
        world.people(tenant, region, packs=[])
    for name in ("loans", "old-loans"):
        assert world.register(f"{BANK}/ana", name, _rows(len(name))).state == "done"
    uma = world.client(f"{BANK}/uma")
    if world.settings.prove_every_s:
        poll(
            "what came with the tenant to be proved",
            lambda: uma.attestation.newest(BANK, kind="test-result", limit=1),
            60.0,
        )
    bundle = _policies(world)
    _version(world, 1)
    _version(world, 2)
    decision, returned = _serve(world)
    ana = world.client(f"{BANK}/ana")
    again = {"dataset": f"{BANK}/old-loans", "environment": "us-east", "use": "credit-risk", "spec": {"epochs": 2}}
    _ended(world, f"{BANK}/ana", ana.act("training.launch", f"{BANK}/run-old", again))
    admin = world.client(f"{BANK}/admin")
    _ended(world, f"{BANK}/admin", admin.act("dataset.delete", f"{BANK}/old-loans", {}))
    poll("an answer of the directory", lambda: uma.evidence.isolation("lakeside", BANK))
    uma.attestation.decision(BANK, decision)
    uma.attestation.entry(BANK, returned)
    uma.attestation.policy(BANK, bundle.partition("/")[2])
    packed = io.BytesIO()
    ana.fetch_artifact(_ended(world, f"{BANK}/ana", ana.act("model.download", SECOND, {})), packed)
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder / "model")
    _fetch(world, f"{BANK}/uma", uma.evidence.export(BANK), folder / "northbank.evidence.zip")
    return Attested(world, folder, decision, bundle)


def rotate(run: Attested) -> None:
    """The key for warrants gives way to another; then it turns out that others had it since just before. It is served again."""
    world = run.world
    world.halt()
    run.pinned.write_bytes(run.trust_root.read_bytes())
    before = TrustRoot.from_json(run.pinned.read_bytes())
    moment_ms = now_ms()
    rotating.rotate(world.settings, "warrant")
    rotating.declare_compromised(world.settings, current(before, "warrant").key.keyid, moment_ms)
    world.again()


OF_THE_PLATFORM: Final = ("key-rotation", "key-compromise")
KINDS: Final = (
    *(
        "approval",
        "decision",
        "deletion",
        "deployment",
        "export",
        "isolation",
        "model-bom",
        "policy",
        "promotion",
        "test-result",
    ),
    *("traffic", "training", "warrant", *OF_THE_PLATFORM),
)
"""What is exported of a run, each with the entry of the log that names it."""


def export(run: Attested, folder: Path, most: int) -> None:
    """Write the newest of each kind as files, as ``licet attestation export`` does."""
    folder.mkdir(parents=True)
    uma = run.world.client(f"{BANK}/uma")
    trust_root = uma.trust_root()
    before = json.loads(run.pinned.read_text())
    found = [(BANK, uma.attestation.read(BANK, row["digest_hex"]), trust_root) for row in _newest(uma, most)]
    # Of the platform's log nobody reads more than this, and this everybody may.
    led = zip(OF_THE_PLATFORM, uma.rotations()["rotations"], (before, trust_root), strict=True)
    found += [("platform", one | {"kind": kind}, root) for kind, one, root in led]
    for tenant, one, root in found:
        for name, data in files_of(tenant, one, root).items():
            (folder / name).write_bytes(data)


def _newest(client: LicetClient, most: int) -> list[dict[str, Any]]:
    kinds = (kind for kind in KINDS if kind not in OF_THE_PLATFORM)
    return [row for kind in kinds for row in client.attestation.newest(BANK, kind=kind, limit=most)]
