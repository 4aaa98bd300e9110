"""A witness that is killed between the durability of a checkpoint and its answer, and before it: it never cosigns two that differ."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from pathlib import Path

import pytest

from licet_attestations import merkle
from licet_attestations.checkpoint import Checkpoint, sign_checkpoint
from licet_attestations.cosignature import read_lines
from licet_attestations.keys import ED25519, PrivateKey
from licet_attestations.vkey import LOG_KIND, VerifierKey
from licet_attestations.witness import Request, Witness

_ORIGIN = "licet.example/acme"
_KEY = PrivateKey.generate(ED25519)
_LOG = VerifierKey(_ORIGIN, LOG_KIND, _KEY.public)

_KILLED_AT = """
import os, signal, sys
from pathlib import Path
from licet_attestations import witness
from licet_attestations.signer import files

def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

where = sys.argv.pop(1)
if where == "before the write":
    witness.replace_durably = die
elif where == "before the rename":
    Path.replace = die
elif where == "after the write":
    witness.cosign = die
from licet_attestations.witness_server import witness_command
witness_command()
"""


def _hashes(salt: str) -> list[bytes]:
    return [merkle.leaf_hash(f"{salt}{number}".encode()) for number in range(20)]


def _asks(hashes: list[bytes], old: int, new: int) -> bytes:
    def hash_at(level: int, index: int) -> bytes:
        return merkle.root(hashes[index << level : (index + 1) << level])

    note = sign_checkpoint(Checkpoint(_ORIGIN, new, merkle.root(hashes[:new])), _KEY)
    return Request(old, tuple(merkle.consistency_proof(old, new, hash_at)), note).to_bytes()


@pytest.mark.parametrize(("where", "kept"), [("before the write", 5), ("before the rename", 5), ("after the write", 9)])
def test_a_witness_that_is_killed_forgets_nothing_that_it_may_have_cosigned(
    tmp_path: Path, where: str, kept: int
) -> None:
    honest, fork = _hashes("a"), _hashes("a")[:5] + _hashes("b")[5:]
    folder = tmp_path / "w"
    Witness.create(folder, "w.example")
    before = Witness(folder, [_LOG], lambda: int(time.time()))
    assert before.add_checkpoint(_asks(honest, 0, 5)).status == 200
    before.close()
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED_AT, where, str(folder), "--log", _LOG.to_text(), "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        port = int(process.stdout.readline().rsplit(":", 1)[1].split("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/add-checkpoint", _asks(honest, 5, 9))
        with pytest.raises((http.client.HTTPException, OSError)):
            connection.getresponse()
        connection.close()
        assert process.wait(10) == -9
    again = Witness(folder, [_LOG], lambda: int(time.time()))
    last = again.last(_ORIGIN)
    assert last is not None
    assert (last.size, last.root) == (kept, merkle.root(honest[:kept]))
    if kept == 9:
        assert again.add_checkpoint(_asks(fork, 9, 12)).status == 422
        assert again.add_checkpoint(_asks(fork, 5, 12)).status == 409
    reply = again.add_checkpoint(_asks(honest, kept, 12))
    assert reply.status == 200
    note = sign_checkpoint(Checkpoint(_ORIGIN, 12, merkle.root(honest[:12])), _KEY)
    read_lines(note, reply.body, again.verifier_key)
    assert not list((folder / "logs").glob(".tmp-*"))
    again.close()
