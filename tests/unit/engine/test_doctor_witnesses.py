"""What the doctor says of witnesses: nothing where there are none, and of which log where a quorum is away."""

from __future__ import annotations

import time
from pathlib import Path

from licet_attestations.keys import ED25519, PrivateKey
from licet_attestations.vkey import COSIGNER_KIND, VerifierKey
from licet_engine.commands.doctor_witnesses import look_at_witnesses
from licet_engine.log import store
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import NewEntry, Submission
from licet_engine.settings import load_settings
from licet_engine.store import db, migrations


def test_the_doctor_tells_which_log_no_quorum_has_seen(tmp_path: Path) -> None:
    settings = load_settings({}, data=tmp_path, witness_max_lag_s=1)
    assert list(look_at_witnesses(settings)) == []
    settings.database.parent.mkdir(parents=True)
    engine = db.open_engine(settings.database)
    migrations.upgrade(engine)
    old = int(time.time() * 1000) - 60_000
    sequencer = Sequencer(engine, clock_ms=lambda: old)
    for tenant in ("northbank", "lakeside"):
        sequencer.append(Submission([NewEntry(tenant, "decision", tenant, tenant, b"{}")] * 3))
    sequencer.close()
    keys = [VerifierKey(f"w{n}", COSIGNER_KIND, PrivateKey.generate(ED25519).public) for n in range(2)]
    lines = [f"witness W{n} {key.to_text()} https://w{n}.example" for n, key in enumerate(keys)]
    policy = tmp_path / "policy"
    policy.write_text("\n".join([*lines, "group G all W0 W1", "quorum G", ""]))
    settings = load_settings({}, data=tmp_path, witness_max_lag_s=1, witness_policy=str(policy))

    def cosigned(tenant: str, size: int, *by: VerifierKey) -> None:
        with db.write_transaction(engine) as connection:
            for key in by:
                store.save_cosignature(connection, tenant, size, keyid=key.key.keyid, time_s=1, line="x")

    cosigned("northbank", 3, *keys)
    cosigned("lakeside", 3, keys[0])
    cosigned("lakeside", 2, *keys)
    (found,) = look_at_witnesses(settings)
    assert found.state == "broken"
    assert "2 of W0, W1" in found.detail
    assert found.detail.endswith("the log of lakeside")
    cosigned("lakeside", 3, keys[1])
    (found,) = look_at_witnesses(settings)
    assert found.state == "ok"
    policy.write_text("\n".join([*lines, "quorum none", ""]))
    with db.write_transaction(engine) as connection:
        connection.execute(store.COSIGNATURES.delete())
    (found,) = look_at_witnesses(settings)
    assert found.state == "weak"  # Nothing waits, but nobody saw.
    policy.write_text("quorum\n")
    (found,) = look_at_witnesses(settings)
    assert (found.state, "line 1" in found.detail) == ("broken", True)
    engine.dispose()
