"""A witness: it cosigns the newest checkpoint of each log it knows, and never two that contradict each other.

Rules kept here:

- A checkpoint is cosigned only if a pinned key of its log signed it and it extends the last one that was cosigned, by a proof.
- The new checkpoint is durable before its cosignature is made: a crash at any point leaves a state that knows of all that was answered.
- After a failed write nothing is assumed: what is stored is read again, and binds.
- A state that cannot be read stops its log; it is never taken for an empty one.
- Two checkpoints of one size and two roots, both signed by the log, are kept: together they prove that it forked.
- One process has the folder: it holds a lock as long as it runs.
- Nothing here knows HTTP; ``witness_server`` carries it.

What it cannot prevent: that its folder is put back to an earlier state. It would then cosign a fork that begins after that state. Never
restore a witness from a backup: begin a new one, with a new key.

Source: C2SP tlog-witness (v0), ``add-checkpoint``; tlog-cosignature (v1), Ed25519.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from licet_attestations import checkpoint as checkpoints
from licet_attestations import merkle
from licet_attestations.cosignature import cosign
from licet_attestations.dsse import decode_base64
from licet_attestations.errors import FormatError, LicetAttestationError, VerificationError
from licet_attestations.keys import ED25519, PrivateKey
from licet_attestations.signer.files import create_durably, make_private_directory, replace_durably, sweep
from licet_attestations.vkey import COSIGNER_KIND, VerifierKey, is_key_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

MAX_REQUEST_BYTES = checkpoints.MAX_NOTE_BYTES + 8 * 1024
"""A checkpoint and the longest proof."""
MAX_PROOF = 63
_OLD = re.compile(r"old (0|[1-9][0-9]{0,15})")
_HEAD_BYTES = re.compile(r"[\n\x20-\x7e]*")
SIZE_TYPE = "text/x.tlog.size"
TEXT_TYPE = "text/plain; charset=utf-8"
_MAX_KEY_BYTES = 4096
_MOST_FORKS = 16


class WitnessError(LicetAttestationError):
    """The witness cannot do its work: its folder is not as it must be. A person has to look."""

    code = "witness.state"


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered: an HTTP status, the kind of body, and the body."""

    status: int
    body: str
    content_type: str = TEXT_TYPE


@dataclass(frozen=True, slots=True)
class Request:
    """An ``add-checkpoint`` request, read and not verified."""

    old_size: int
    proof: tuple[bytes, ...]
    note: str

    def to_bytes(self) -> bytes:
        """As it is sent."""
        lines = "".join(f"{checkpoints.encode_hash(part)}\n" for part in self.proof)
        return f"old {self.old_size}\n{lines}\n{self.note}".encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Request:
        """Read a request.

        Raises:
            FormatError: Not one.
        """
        if len(data) > MAX_REQUEST_BYTES:
            raise FormatError(f"a request has at most {MAX_REQUEST_BYTES} bytes")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError("a request is UTF-8") from error
        head, blank, note = text.partition("\n\n")
        lines = head.split("\n")
        old = _OLD.fullmatch(lines[0])
        if not blank or old is None or not _HEAD_BYTES.fullmatch(head):
            raise FormatError("a request is 'old SIZE', the lines of a proof, a blank line, and a checkpoint")
        if len(lines) > 1 + MAX_PROOF:
            raise FormatError(f"a consistency proof has at most {MAX_PROOF} lines")
        proof = tuple(decode_base64(line, "a line of a consistency proof") for line in lines[1:])
        if any(len(part) != merkle.HASH_BYTES for part in proof):
            raise FormatError("a line of a consistency proof is a hash of 32 bytes")
        return cls(int(old.group(1)), proof, note)


class Witness:
    """Cosigns. May be shared by threads.

    Args:
        folder: From ``create``; nobody else may use it meanwhile.
        logs: Keys of the logs it knows.
        clock_s: The time, in seconds since the epoch.

    Raises:
        WitnessError: The folder is not a witness's, is in use, or can be read by others.
    """

    def __init__(self, folder: Path, logs: Iterable[VerifierKey], clock_s: Callable[[], int]) -> None:
        self._lock_fd = _hold(folder)
        self._folder = folder
        self._clock_s = clock_s
        self._name, self._key = _read_key(folder)
        self._logs: dict[str, list[VerifierKey]] = {}
        for log in logs:
            self._logs.setdefault(log.name, []).append(log)
        self._lock = threading.Lock()
        make_private_directory(folder / "logs")
        sweep(folder / "logs")
        for origin in self._logs:
            self.last(origin)  # A state that cannot be read is told at the start, not at the first request.

    @property
    def verifier_key(self) -> VerifierKey:
        """The public half, for policies."""
        return VerifierKey(self._name, COSIGNER_KIND, self._key.public)

    @staticmethod
    def create(folder: Path, name: str) -> VerifierKey:
        """Make a witness's folder, with a new key; return the key's public half.

        Raises:
            FormatError: The name cannot name a key.
            FileExistsError: There is a key already; it was left as it was.
        """
        if not is_key_name(name):
            raise FormatError(f"{name!r} cannot name a witness: no spaces, no '+'; it looks like witness.example/w1")
        make_private_directory(folder)
        key = PrivateKey.generate(ED25519)
        create_durably(_key_file(folder), name.encode() + b"\n" + key.to_pkcs8())
        return VerifierKey(name, COSIGNER_KIND, key.public)

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._lock_fd)

    def last(self, origin: str) -> checkpoints.Checkpoint | None:
        """The last checkpoint of a log that was cosigned, or was about to be; None before the first.

        Raises:
            WitnessError: What is stored cannot be read, or is no checkpoint of the log.
        """
        path = self._file(origin)
        try:
            note = path.read_bytes().decode("utf-8")
            # Verified as when it came: whoever can write here but not sign cannot move the witness back to a made-up state.
            return checkpoints.verify_checkpoint(note, origin, [key.key for key in self._logs[origin]])
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, VerificationError) as error:
            raise WitnessError(f"{path} is not the last checkpoint of {origin!r}: {error}") from error

    def add_checkpoint(self, body: bytes) -> Reply:
        """Answer one request."""
        try:
            asked = Request.from_bytes(body)
            stated, _, _ = checkpoints.parse_note(asked.note)
        except FormatError as error:
            return Reply(400, f"{error}\n")
        keys = self._logs.get(stated.origin)
        if keys is None:
            return Reply(404, "this witness does not know that log\n")
        try:
            new = checkpoints.verify_checkpoint(asked.note, stated.origin, [key.key for key in keys])
        except VerificationError as error:
            return Reply(403, f"{error}\n")
        if asked.old_size > new.size:
            return Reply(400, f"the old size {asked.old_size} is above the checkpoint's {new.size}\n")
        # Compared, stored and signed under one lock: of two that come at once, the second is compared with what the first left.
        with self._lock:
            try:
                return self._advance(asked, new)
            except (OSError, WitnessError) as error:
                # Nothing was signed. What is on the disk now is read again by the next request, and binds it.
                return Reply(500, f"the state of this witness cannot be kept: {type(error).__name__}\n")

    def _advance(self, asked: Request, new: checkpoints.Checkpoint) -> Reply:
        last = self.last(new.origin) or checkpoints.Checkpoint(new.origin, 0, merkle.EMPTY_ROOT)
        if asked.old_size != last.size:
            return Reply(409, f"{last.size}\n", SIZE_TYPE)
        if new.size == last.size and new.root != last.root:
            self._keep_fork(asked.note, new)
            return Reply(409, f"{last.size}\n", SIZE_TYPE)
        try:
            merkle.verify_extension(last.size, last.root, new.size, new.root, asked.proof)
        except VerificationError as error:
            return Reply(422, f"{error}\n")
        # Written anew even where it is the same checkpoint: an earlier write may have failed and yet be found here, and be lost later.
        replace_durably(self._file(new.origin), asked.note.encode())
        return Reply(200, cosign(asked.note, self._name, self._key, self._clock_s()))

    def _keep_fork(self, note: str, new: checkpoints.Checkpoint) -> None:
        """Keep what the log signed against itself: with the last checkpoint it proves the fork to anybody."""
        folder = self._folder / "forks"
        make_private_directory(folder)
        name = f"{hashlib.sha256(new.origin.encode()).hexdigest()[:16]}-{new.size}-{new.root.hex()[:16]}"
        if len(list(folder.iterdir())) < 2 * _MOST_FORKS and not (folder / f"{name}.note").exists():
            replace_durably(folder / f"{name}.last.note", self._file(new.origin).read_bytes())
            replace_durably(folder / f"{name}.note", note.encode())

    def _file(self, origin: str) -> Path:
        return self._folder / "logs" / f"{hashlib.sha256(origin.encode()).hexdigest()}.note"


def _key_file(folder: Path) -> Path:
    return folder / "witness.key"


def _read_key(folder: Path) -> tuple[str, PrivateKey]:
    path = _key_file(folder)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise WitnessError(f"{path} cannot be read ({error.strerror}): make a witness with --init") from error
    with os.fdopen(fd, "rb") as file:
        mode = os.fstat(fd)
        if mode.st_uid != os.geteuid() or stat.S_IMODE(mode.st_mode) & 0o077:
            raise WitnessError(f"{path} must be its user's alone: chmod 600, and run the witness as its owner")
        name, _, pem = file.read(_MAX_KEY_BYTES).partition(b"\n")
    try:
        key = PrivateKey.from_pkcs8(pem)
        if key.public.alg != ED25519 or not is_key_name(name.decode()):
            raise FormatError("not an Ed25519 key with a name")
    except (FormatError, UnicodeDecodeError) as error:
        raise WitnessError(f"{path} is not a witness's key: {error}") from error
    return name.decode(), key


def _hold(folder: Path) -> int:
    """Hold the folder until the descriptor is closed; the kernel does it when the process ends."""
    try:
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise WitnessError(f"{folder} is not a witness's folder ({error.strerror}): make one with --init") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise WitnessError(f"another witness runs on {folder}: two on one state could cosign a fork") from error
    return fd
