"""The isolation answer for one pair on a log of a million entries, beside one on a log of a hundredth, and what a turn of the directory costs.

The log is written as the sequencer writes it, in groups; its pairs are counted as the api counts them. Then the answer is made as often as is
asked for, each after another entry: an entry of the directory, its checkpoint, the proof, the signature, and its own entry in the log.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from licet_adapters.conformance.world import World
from licet_attestations import canonical, isolation_pair
from licet_attestations.directory import DirectoryMap, LogState
from licet_attestations.signer.rules import SignerRules
from licet_attestations.signer.state import CheckpointState, FileStorage
from licet_engine.evidence.isolation import PairAnswers
from licet_engine.log.directory import Directory
from licet_engine.log.notary import Notary
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import NewEntry, Submission
from licet_engine.store import db, migrations

OWNER = "northbank"
PER_SUBMISSION = 1000
TENANTS = (10, 100, 1000)
RECORD = b'{"decision":"deny","v":1}'


def entries(count: int, actors: int) -> Submission:
    """Some of the owner's own decisions, and attempts of others among them."""
    made = [NewEntry(OWNER, "decision", OWNER, OWNER, RECORD) for _ in range(count - actors)]
    made += [NewEntry(OWNER, "attempt", f"tenant-{n}", OWNER, RECORD) for n in range(actors)]
    return Submission(made)


def answers(folder: Path, size: int, rounds: int) -> dict[str, float]:
    """Grow a log, then answer for one that never came and for one that did."""
    world = World(folder / "world")
    path = folder / "licet.db"
    engine = db.open_engine(path)
    migrations.upgrade(engine)
    sequencer = Sequencer(engine, clock_ms=world.clock)
    signer = SignerRules(world.keystore, CheckpointState(FileStorage(folder / "logs")), world.clock)
    directory = Directory(engine, sequencer, Notary(engine, signer))
    pairs = PairAnswers(engine, sequencer, directory, signer)
    figures = {}
    began = time.perf_counter()
    for _ in range(size // PER_SUBMISSION):
        sequencer.append(entries(PER_SUBMISSION, actors=20))
    figures["grow_s"] = time.perf_counter() - began
    began = time.perf_counter()
    while directory.turn():
        pass
    figures["count_all_pairs_s"] = time.perf_counter() - began
    for name, actor in (("absent", "nobody-home"), ("present", "tenant-7")):
        took = []
        for _ in range(rounds):
            sequencer.append(entries(PER_SUBMISSION, actors=20))
            began = time.perf_counter()
            found = pairs.answer(actor, OWNER)
            took.append((time.perf_counter() - began) * 1000)
        figures[f"answer_{name}_ms"] = statistics.median(took)
        figures[f"answer_{name}_worst_ms"] = max(took)
        envelope = canonical.dumps(found["statement"])
        began = time.perf_counter()
        answer = isolation_pair.verify_statement(envelope, world.keystore.trust_root)
        figures[f"verify_{name}_ms"] = (time.perf_counter() - began) * 1000
        figures["statement_bytes"] = len(envelope)
        assert answer.is_absent == (name == "absent")
        figures["entries"] = answer.opened.state.size
    sequencer.close()
    engine.dispose()
    return figures


def map_ms(tenants: int) -> float:
    """What it takes to make the map of one entry of the directory."""
    states = [LogState(f"tenant-{n}", n, bytes(32), bytes(32)) for n in range(tenants)]
    began = time.perf_counter()
    DirectoryMap(states, bytes(32))
    return (time.perf_counter() - began) * 1000


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--entries", type=int, default=1_000_000, help="entries of the log (default 1000000)")
    parser.add_argument("--rounds", type=int, default=15, help="answers of each kind (default 15)")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    found = {}
    for size in (max(arguments.entries // 100, PER_SUBMISSION), arguments.entries):
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
            found[size] = answers(Path(name), size, arguments.rounds)
    small, figures = found.values()
    ratios = {name: figures[name] / small[name] for name in figures if name.startswith("answer_")}
    figures |= {f"directory_map_of_{count}_logs_ms": map_ms(count) for count in TENANTS}
    if arguments.format == "json":
        print(json.dumps(figures | {f"{name}_of_a_hundredth": ratio for name, ratio in ratios.items()}))
        return
    print("the isolation answer of one pair, each time after a thousand further entries")
    for name, value in figures.items():
        beside = f"   {ratios[name]:.1f}x that at {small['entries']:,.0f} entries" if name in ratios else ""
        print(f"  {name:<34} {value:>12.2f}{beside}")
    worst_ms = max(figures["answer_absent_worst_ms"], figures["answer_present_worst_ms"])
    print(f"  the slowest answer took {worst_ms / 1000:.2f} of the second that it may take")


if __name__ == "__main__":
    main()
