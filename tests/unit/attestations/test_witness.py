"""Cosignatures, tlog-policy and the witness: what is cosigned, what never is, and what counts as a quorum."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ed25519

from licet_attestations import merkle, witness_server
from licet_attestations.checkpoint import Checkpoint, sign_checkpoint, verify_checkpoint
from licet_attestations.cosignature import cosign, read_lines, verify_cosignatures
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.keys import ED25519, PrivateKey, PublicKey
from licet_attestations.tlogpolicy import Policy, log_keys, verify
from licet_attestations.trustroot import TrustedKey, TrustRoot
from licet_attestations.vkey import COSIGNER_KIND, LOG_KIND, VerifierKey
from licet_attestations.witness import SIZE_TYPE, Request, Witness, WitnessError
from licet_attestations.witness_server import WitnessServer

ORIGIN = "licet.example/acme"
_NOW_S = 1_700_000_000


class TreeLog:
    """A log in memory, whose leaves can be made otherwise."""

    def __init__(self, leaves: list[bytes], key: PrivateKey | None = None, origin: str = ORIGIN) -> None:
        self.hashes = [merkle.leaf_hash(leaf) for leaf in leaves]
        self.key = key or PrivateKey.generate(ED25519)
        self.origin = origin

    @property
    def vkey(self) -> VerifierKey:
        return VerifierKey(self.origin, LOG_KIND, self.key.public)

    def hash_at(self, level: int, index: int) -> bytes:
        return merkle.root(self.hashes[index << level : (index + 1) << level])

    def note(self, size: int) -> str:
        return sign_checkpoint(Checkpoint(self.origin, size, merkle.root(self.hashes[:size])), self.key)

    def asks(self, old: int, new: int) -> bytes:
        return Request(old, tuple(merkle.consistency_proof(old, new, self.hash_at)), self.note(new)).to_bytes()


@pytest.fixture
def log() -> TreeLog:
    return TreeLog([str(number).encode() for number in range(600)])


@pytest.fixture
def witness(tmp_path: Path, log: TreeLog) -> Iterator[Witness]:
    Witness.create(tmp_path / "w", "witness.example/w1")
    made = Witness(tmp_path / "w", [log.vkey], lambda: _NOW_S)
    yield made
    with contextlib.suppress(OSError):
        made.close()


def test_a_cosignature_is_the_bytes_that_the_specification_names(log: TreeLog) -> None:
    key = PrivateKey.generate(ED25519)
    line = cosign(log.note(5), "witness.example/w1", key, _NOW_S)
    name, encoded = line.removeprefix("— ").rstrip("\n").split(" ")
    raw = base64.b64decode(encoded)
    assert name == "witness.example/w1"
    assert raw[:4] == hashlib.sha256(b"witness.example/w1\n\x04" + key.public.raw()).digest()[:4]
    assert struct.unpack(">Q", raw[4:12]) == (_NOW_S,)
    text = log.note(5).split("\n\n")[0] + "\n"
    signed = f"cosignature/v1\ntime {_NOW_S}\n{text}".encode()
    ed25519.Ed25519PublicKey.from_public_bytes(key.public.raw()).verify(raw[12:], signed)
    assert len(raw) == 4 + 8 + 64


def test_a_cosignature_is_read_back_and_another_time_or_checkpoint_is_refused(log: TreeLog) -> None:
    key = PrivateKey.generate(ED25519)
    named = VerifierKey("w", COSIGNER_KIND, key.public)
    line = cosign(log.note(5), "w", key, _NOW_S)
    assert verify_cosignatures(log.note(5) + line, [named])[named].time_s == _NOW_S
    with pytest.raises(VerificationError):
        verify_cosignatures(log.note(6) + line, [named])
    raw = bytearray(base64.b64decode(line.split(" ")[2]))
    raw[11] ^= 1
    forged = f"— w {base64.b64encode(bytes(raw)).decode()}\n"
    with pytest.raises(VerificationError):
        verify_cosignatures(log.note(5) + forged, [named])


def test_the_key_of_a_log_never_counts_as_a_witness(log: TreeLog) -> None:
    as_cosigner = VerifierKey(ORIGIN, COSIGNER_KIND, log.key.public)
    assert verify_cosignatures(log.note(5), [as_cosigner]) == {}
    assert verify_cosignatures(log.note(5), [log.vkey]) == {}


def test_a_checkpoint_with_cosignatures_is_still_the_logs(log: TreeLog) -> None:
    note = log.note(7) + cosign(log.note(7), "w", PrivateKey.generate(ED25519), _NOW_S)
    assert verify_checkpoint(note, ORIGIN, [log.key.public]).size == 7


def test_an_answer_without_the_pinned_witness_is_refused(log: TreeLog) -> None:
    other = PrivateKey.generate(ED25519)
    pinned = VerifierKey("w", COSIGNER_KIND, PrivateKey.generate(ED25519).public)
    for lines in (cosign(log.note(5), "w", other, _NOW_S), "", "no line", "x\n\ny\n", "— w AAAA\n" * 100):
        with pytest.raises(VerificationError):
            read_lines(log.note(5), lines, pinned)


@pytest.mark.parametrize("kind", [LOG_KIND, COSIGNER_KIND])
def test_a_vkey_is_written_and_read_and_nothing_else_is(kind: int) -> None:
    key = VerifierKey("witness.example/w1", kind, PrivateKey.generate(ED25519).public)
    text = key.to_text()
    assert VerifierKey.from_text(text, kind) == key
    name, stated, encoded = text.split("+", 2)
    other = "0" * 8 if stated != "0" * 8 else "1" * 8
    for wrong in (
        f"other+{stated}+{encoded}",
        f"{name}+{other}+{encoded}",
        f"{name}+{stated}",
        "",
        text + "A",
        " " + text,
    ):
        with pytest.raises(FormatError):
            VerifierKey.from_text(wrong, kind)
    with pytest.raises(FormatError, match="kind"):
        VerifierKey.from_text(text, LOG_KIND if kind == COSIGNER_KIND else COSIGNER_KIND)


def test_gos_published_key_is_read() -> None:
    text = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
    assert VerifierKey.from_text(text, LOG_KIND).to_text() == text


# --- policy ---------------------------------------------------------------------------------------------------------------


class Signers:
    """So many witnesses' keys, and a policy over them."""

    def __init__(self, count: int) -> None:
        self.keys = [PrivateKey.generate(ED25519) for _ in range(count)]
        self.vkeys = [VerifierKey(f"w{n}.example", COSIGNER_KIND, key.public) for n, key in enumerate(self.keys)]

    def lines(self) -> str:
        return "".join(f"witness W{n} {vkey.to_text()}\n" for n, vkey in enumerate(self.vkeys))

    def cosigned(self, note: str, *numbers: int) -> str:
        return note + "".join(cosign(note, f"w{n}.example", self.keys[n], _NOW_S) for n in numbers)


@pytest.mark.parametrize(
    ("rule", "numbers", "is_met"),
    [
        ("group G 2 W0 W1 W2\nquorum G", (0, 2), True),
        ("group G 2 W0 W1 W2\nquorum G", (1,), False),
        ("group G 2 W0 W1 W2\nquorum G", (1, 1), False),
        ("group G all W0 W1 W2\nquorum G", (0, 1), False),
        ("group G all W0 W1 W2\nquorum G", (0, 1, 2), True),
        ("group G any W0 W1\nquorum G", (2,), False),
        ("group G any W0 W1\nquorum G", (1,), True),
        ("group A 1 W0 W1\ngroup B any W2\ngroup G all A B\nquorum G", (0, 1), False),
        ("group A 1 W0 W1\ngroup B any W2\ngroup G all A B\nquorum G", (0, 2), True),
        ("quorum W1", (0, 2), False),
        ("quorum W1", (1,), True),
        ("quorum none", (), True),
    ],
)
def test_a_quorum_is_so_many_of_these(log: TreeLog, rule: str, numbers: tuple[int, ...], *, is_met: bool) -> None:
    signers = Signers(3)
    policy = Policy.from_bytes((signers.lines() + rule + "\n").encode())
    note = signers.cosigned(log.note(9), *numbers)
    if is_met:
        found = verify(note, policy, ORIGIN, [log.key.public])
        assert (found.checkpoint.size, set(found.cosignatures)) == (9, {f"W{n}" for n in numbers})
    else:
        with pytest.raises(VerificationError, match="cosigned by"):
            verify(note, policy, ORIGIN, [log.key.public])


@pytest.mark.parametrize(
    ("rule", "numbers", "after_s", "counts"),
    [
        ("group G 2 W0 W1 W2\nquorum G", (0, 2), 1, True),
        ("group G 2 W0 W1 W2\nquorum G", (0, 2), 0, False),
        ("group G 2 W0 W1 W2\nquorum G", (0,), 1, False),
        ("quorum none", (0, 1, 2), 1, False),
        (None, (0, 1, 2), 1, False),
    ],
)
def test_a_compromised_key_of_a_log_counts_for_what_a_quorum_cosigned_before(
    log: TreeLog, rule: str | None, numbers: tuple[int, ...], after_s: int, *, counts: bool
) -> None:
    signers, new = Signers(3), PrivateKey.generate(ED25519).public
    policy = None if rule is None else Policy.from_bytes((signers.lines() + rule + "\n").encode())
    from_ms = (_NOW_S + after_s) * 1000
    old = TrustedKey(log.key.public, "log", 0, valid_until_ms=from_ms + 5, compromised_from_ms=from_ms)
    trust = TrustRoot("t", (old, TrustedKey(new, "log", from_ms + 5)), "licet.example")
    note = signers.cosigned(log.note(9), *numbers)
    assert log_keys(note, policy, trust) == ((new, log.key.public) if counts else (new,))
    # It had ended when the last entry was made.
    assert log_keys(note, policy, trust, from_ms + 5) == (new,)


def test_a_policy_that_names_logs_trusts_no_other(log: TreeLog) -> None:
    other = TreeLog([], origin=ORIGIN)
    policy = Policy.from_bytes(f"# logs\nlog {log.vkey.to_text()} https://log.example\nquorum none\n".encode())
    assert verify(log.note(3), policy, ORIGIN).checkpoint.size == 3
    with pytest.raises(VerificationError):
        verify(other.note(0), policy, ORIGIN)
    with pytest.raises(VerificationError, match="trusts no log"):
        verify(TreeLog([], key=log.key, origin="licet.example/other").note(0), policy, "licet.example/other")
    with pytest.raises(VerificationError):  # Pinned elsewhere to another key: both must agree.
        verify(log.note(3), policy, ORIGIN, [other.key.public])


def test_what_is_no_policy_is_refused_with_its_line() -> None:
    signers = Signers(3)
    witnesses = signers.lines()
    w0 = signers.vkeys[0].to_text()
    for text, told in (
        ("", "exactly one quorum"),
        (witnesses, "exactly one quorum"),
        ("quorum none\nquorum none\n", "line 2"),
        ("quorum W0\n", "not defined"),
        (f"quorum W0\n{witnesses}", "not defined"),
        (f"{witnesses}group G 4 W0 W1 W2\nquorum G\n", "line 4"),
        (f"{witnesses}group G 0 W0\nquorum G\n", "line 4"),
        (f"{witnesses}group G 01 W0\nquorum G\n", "line 4"),
        (f"{witnesses}group G any\nquorum G\n", "line 4"),
        (f"{witnesses}group G any G\nquorum G\n", "not defined"),
        (f"{witnesses}group G any W0 W0\nquorum G\n", "count twice"),
        (f"{witnesses}group G any W0\ngroup H any W0\nquorum H\n", "count twice"),
        (f"{witnesses}group none any W0\nquorum none\n", "defined already"),
        (f"{witnesses}group W0 any W1\nquorum W0\n", "defined already"),
        (f"{witnesses}witness W9 {w0}\nquorum W9\n", "another's already"),
        (f"{witnesses}quorum none W0\n", "line 4"),
        (f"witness W0 {w0} https://w.example more\nquorum W0\n", "line 1"),
        (f"log {w0}\nquorum none\n", "kind 0x01"),
        ("witnes W0\nquorum none\n", "line 1"),
        ("quorum none\r\n", "control"),
        ("quorum\vnone\n", "control"),
    ):
        with pytest.raises(FormatError, match=told):
            Policy.from_bytes(text.encode())


# --- the witness ----------------------------------------------------------------------------------------------------------


def test_a_witness_cosigns_what_extends_the_last_it_saw(witness: Witness, log: TreeLog) -> None:
    last = 0
    for size in (0, 1, 3, 3, 256, 300, 600):
        reply = witness.add_checkpoint(log.asks(last, size))
        assert reply.status == 200, reply.body
        found = read_lines(log.note(size), reply.body, witness.verifier_key)
        assert found.time_s == _NOW_S
        last = size
        kept = witness.last(ORIGIN)
        assert kept is not None
        assert (kept.size, kept.root) == (size, merkle.root(log.hashes[:size]))


def test_another_old_size_than_the_last_is_told_the_last(witness: Witness, log: TreeLog) -> None:
    assert witness.add_checkpoint(log.asks(0, 10)).status == 200
    for old, new in ((0, 20), (5, 20), (5, 5), (0, 3), (11, 20)):
        reply = witness.add_checkpoint(log.asks(old, new))
        assert (reply.status, reply.body, reply.content_type) == (409, "10\n", SIZE_TYPE)


def test_two_checkpoints_of_one_size_are_kept_as_the_proof_of_a_fork(
    tmp_path: Path, witness: Witness, log: TreeLog
) -> None:
    assert witness.add_checkpoint(log.asks(0, 10)).status == 200
    for number in range(40):
        fork = TreeLog([f"{number} {n}".encode() for n in range(10)], key=log.key)
        for _ in range(2):
            assert witness.add_checkpoint(fork.asks(10, 10)).status == 409
    kept = sorted((tmp_path / "w" / "forks").iterdir())
    assert len(kept) == 32  # Sixteen pairs: nobody fills the disk.
    proof, theirs = kept[0], kept[1]
    assert theirs.name == proof.name.replace(".last.note", ".note")
    heads = [verify_checkpoint(path.read_text(), ORIGIN, [log.key.public]) for path in (proof, theirs)]
    assert heads[0].size == heads[1].size
    assert heads[0].root != heads[1].root


def test_a_fork_is_never_cosigned(witness: Witness, log: TreeLog) -> None:
    assert witness.add_checkpoint(log.asks(0, 10)).status == 200
    fork = TreeLog([f"fork {n}".encode() for n in range(40)], key=log.key)
    assert witness.add_checkpoint(fork.asks(10, 10)).status == 409
    assert witness.add_checkpoint(fork.asks(10, 20)).status == 422
    assert witness.add_checkpoint(fork.asks(0, 20)).status == 409
    # With the true log's proof, and with none, and one hash more.
    proof = tuple(merkle.consistency_proof(10, 20, log.hash_at))
    assert witness.add_checkpoint(Request(10, proof, fork.note(20)).to_bytes()).status == 422
    assert witness.add_checkpoint(Request(10, (), log.note(20)).to_bytes()).status == 422
    assert witness.add_checkpoint(Request(10, (*proof, bytes(32)), log.note(20)).to_bytes()).status == 422
    kept = witness.last(ORIGIN)
    assert kept is not None
    assert kept.size == 10
    assert witness.add_checkpoint(log.asks(10, 20)).status == 200


def test_an_unknown_log_and_an_unsigned_checkpoint_are_told_apart(witness: Witness, log: TreeLog) -> None:
    assert witness.add_checkpoint(TreeLog([b"a"], key=log.key, origin="else").asks(0, 1)).status == 404
    assert witness.add_checkpoint(TreeLog([b"a"]).asks(0, 1)).status == 403
    assert witness.last(ORIGIN) is None


def test_what_is_no_request_is_refused(witness: Witness, log: TreeLog) -> None:
    note = log.note(3)
    hash_ = base64.b64encode(bytes(32)).decode()
    for body in (
        b"",
        b"\xff\n\n",
        note.encode(),
        f"old 0\n{note}".encode(),
        f"old 00\n\n{note}".encode(),
        f"old -1\n\n{note}".encode(),
        f"old  0\n\n{note}".encode(),
        f"old 4\n\n{note}".encode(),
        f"old 0\r\n\n{note}".encode(),
        (f"old 1\n{hash_}\n" + f"{hash_}\n" * 63 + f"\n{note}").encode(),
        f"old 1\n{hash_[:-4]}\n\n{note}".encode(),
        f"old 1\n{hash_}=\n\n{note}".encode(),
        f"old 0\n\n{note}".encode() + b"x" * 100_000,
        f"old 0\n\n{note.replace('3', '03', 1)}".encode(),
    ):
        assert witness.add_checkpoint(body).status == 400, body[:80]
    assert witness.last(ORIGIN) is None


def test_of_two_that_come_at_once_one_is_told_the_others_size(witness: Witness, log: TreeLog) -> None:
    assert witness.add_checkpoint(log.asks(0, 1)).status == 200
    statuses: list[int] = []
    gate = threading.Barrier(8)

    def ask(size: int) -> None:
        gate.wait()
        statuses.append(witness.add_checkpoint(log.asks(1, size)).status)

    threads = [threading.Thread(target=ask, args=(size,)) for size in range(100, 108)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] + [409] * 7


def test_a_restarted_witness_knows_what_it_cosigned(tmp_path: Path, log: TreeLog, witness: Witness) -> None:
    assert witness.add_checkpoint(log.asks(0, 10)).status == 200
    with pytest.raises(WitnessError, match="another witness"):
        Witness(tmp_path / "w", [log.vkey], lambda: 0)
    witness.close()
    again = Witness(tmp_path / "w", [log.vkey], lambda: _NOW_S)
    assert again.verifier_key == witness.verifier_key
    assert again.add_checkpoint(log.asks(0, 20)).status == 409
    assert again.add_checkpoint(log.asks(10, 20)).status == 200
    again.close()


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_state_that_cannot_be_read_is_not_taken_for_an_empty_one(
    tmp_path: Path, log: TreeLog, witness: Witness, damage: bytes | None
) -> None:
    assert witness.add_checkpoint(log.asks(0, 10)).status == 200
    (path,) = (tmp_path / "w" / "logs").iterdir()
    # What somebody else signed is no state either.
    path.write_bytes(TreeLog([b"x"]).note(1).encode() if damage is None else damage)
    assert witness.add_checkpoint(log.asks(10, 20)).status == 500
    assert witness.add_checkpoint(log.asks(0, 20)).status == 500
    witness.close()
    with pytest.raises(WitnessError, match="last checkpoint"):
        Witness(tmp_path / "w", [log.vkey], lambda: 0)


def test_what_cannot_be_stored_is_not_cosigned(log: TreeLog, witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    assert witness.add_checkpoint(log.asks(0, 10)).status == 200

    def full(_fd: int) -> None:
        raise OSError(28, "no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        reply = witness.add_checkpoint(log.asks(10, 20))
        assert (reply.status, "—" in reply.body) == (500, False)
    assert witness.add_checkpoint(log.asks(10, 20)).status == 200


def test_a_key_that_others_can_read_is_refused(tmp_path: Path, log: TreeLog, witness: Witness) -> None:
    witness.close()
    key = tmp_path / "w" / "witness.key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o640)
    with pytest.raises(WitnessError, match="alone"):
        Witness(tmp_path / "w", [log.vkey], lambda: 0)
    with pytest.raises(FileExistsError):
        Witness.create(tmp_path / "w", "witness.example/w2")


# --- on HTTP --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(witness: Witness) -> Iterator[tuple[str, int]]:
    with WitnessServer(("127.0.0.1", 0), witness, connection_s=1.5) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield ("127.0.0.1", server.server_address[1])
        server.shutdown()
        thread.join()


def _post(address: tuple[str, int], body: bytes, path: str = "/add-checkpoint") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection(*address, timeout=5)
    try:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type", ""), answer.read().decode()
    finally:
        connection.close()


def test_a_witness_answers_on_http(served: tuple[str, int], witness: Witness, log: TreeLog) -> None:
    status, _, body = _post(served, log.asks(0, 5))
    assert status == 200
    assert read_lines(log.note(5), body, witness.verifier_key).time_s == _NOW_S
    assert _post(served, log.asks(0, 7)) == (409, SIZE_TYPE, "5\n")
    assert _post(served, log.asks(5, 7), "/some/prefix/add-checkpoint")[0] == 200
    assert _post(served, log.asks(7, 8), "/else")[0] == 404
    assert _post(served, b"x" * 100_000)[0] == 413


def test_several_requests_come_on_one_connection(served: tuple[str, int], log: TreeLog) -> None:
    connection = http.client.HTTPConnection(*served, timeout=5)
    for old, new in ((0, 1), (1, 2), (2, 3)):
        connection.request("POST", "/add-checkpoint", log.asks(old, new))
        answer = connection.getresponse()
        assert answer.status == 200
        answer.read()
    connection.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: w\r\n\r\n",
        b"POST /add-checkpoint HTTP/1.1\r\nHost: w\r\n\r\n",
        b"POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nContent-Length: -1\r\n\r\n",
        b"POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_what_is_no_post_is_refused_and_the_connection_ends(served: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(served, timeout=5) as channel:
        channel.sendall(sent)
        answer = b""
        while part := channel.recv(4096):
            answer += part
    assert b" 200 " not in answer.split(b"\r\n")[0]


def test_whoever_sends_a_byte_now_and_then_is_cut_off(served: tuple[str, int], log: TreeLog) -> None:
    begun_s = time.monotonic()
    with socket.create_connection(served, timeout=5) as channel, contextlib.suppress(OSError):
        channel.sendall(b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 5000\r\n\r\n")
        while time.monotonic() - begun_s < 4:
            channel.sendall(b"o")
            time.sleep(0.05)
    assert time.monotonic() - begun_s < 3
    assert _post(served, log.asks(0, 1))[0] == 200


def test_the_command_makes_a_witness_and_refuses_to_make_it_twice(tmp_path: Path) -> None:
    folder = str(tmp_path / "w")
    made = CliRunner().invoke(witness_server.witness_command, [folder, "--init", "witness.example/w1"])
    assert made.exit_code == 0
    assert VerifierKey.from_text(made.output.strip(), COSIGNER_KIND).name == "witness.example/w1"
    for arguments, told in (
        ([folder, "--init", "witness.example/w1"], "has a witness already"),
        ([folder], "knows no log"),
        ([str(tmp_path / "none"), "--log", TreeLog([]).vkey.to_text()], "--init"),
        ([folder, "--log", "nonsense"], "vkey"),
        ([folder, "--log", TreeLog([]).vkey.to_text(), "--listen", "nowhere"], "HOST:PORT"),
    ):
        ended = CliRunner().invoke(witness_server.witness_command, arguments)
        assert (ended.exit_code, told in ended.output) == (2, True), ended.output


def test_a_witness_runs_as_a_process_and_ends_when_told(tmp_path: Path, log: TreeLog) -> None:
    command = [sys.executable, "-m", "licet_attestations.witness_server", str(tmp_path / "w")]
    subprocess.run([*command, "--init", "w1"], check=True, capture_output=True, timeout=30)
    (tmp_path / "logs").write_text(f"# ours\n\n{log.vkey.to_text()}\n")
    with subprocess.Popen(
        [*command, "--logs", str(tmp_path / "logs"), "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        key = VerifierKey.from_text(process.stdout.readline().split(" ")[1].strip(), COSIGNER_KIND)
        port = int(process.stdout.readline().rsplit(":", 1)[1].split("/")[0])
        status, _, body = _post(("127.0.0.1", port), log.asks(0, 5))
        assert status == 200
        assert read_lines(log.note(5), body, key).time_s > _NOW_S
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


def test_public_keys_are_read_from_their_raw_bytes() -> None:
    key = PrivateKey.generate(ED25519).public
    assert PublicKey.from_raw(key.raw()) == key
    with pytest.raises(FormatError):
        PublicKey.from_raw(b"short")
