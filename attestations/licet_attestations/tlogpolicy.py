"""Which logs and witnesses are trusted, and how many of them must have seen a checkpoint: C2SP tlog-policy text.

Rules kept here:

- What is not understood is refused, with its line; nothing is skipped but comments.
- A name is defined before it is used, once, and is a member of one group at most: no witness counts twice.
- A key is one witness's: two names for one key would be two votes of one.
- ``quorum none`` is said, never the outcome of an omission.

Source: C2SP tlog-policy (v0).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from licet_attestations import checkpoint as checkpoints
from licet_attestations.cosignature import Cosignature, verify_cosignatures
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.vkey import COSIGNER_KIND, LOG_KIND, VerifierKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Set as AbstractSet

    from licet_attestations.keys import PublicKey
    from licet_attestations.trustroot import TrustRoot

MAX_POLICY_BYTES = 256 * 1024
NONE = "none"
_MOST = 1024
_COUNT = re.compile(r"[1-9][0-9]{0,3}")
_ALLOWED = re.compile(rb"[\t\n\x20-\x7e\x80-\xff]*")


@dataclass(frozen=True, slots=True)
class Log:
    """A trusted log: its key, whose name is its origin, and where it is, or nothing."""

    key: VerifierKey
    url: str = ""


@dataclass(frozen=True, slots=True)
class Witness:
    """A trusted witness: its name in the policy, its key, and its submission prefix, or nothing."""

    name: str
    key: VerifierKey
    url: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """So many of these, each a witness or a group."""

    name: str
    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cosigned:
    """A checkpoint that a policy accepts.

    Attributes:
        checkpoint: It.
        cosignatures: Of the policy's witnesses, by their names there.
    """

    checkpoint: checkpoints.Checkpoint
    cosignatures: dict[str, Cosignature]


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy.

    Attributes:
        logs: Trusted logs; empty where they are known from elsewhere.
        witnesses: By name.
        groups: By name.
        quorum: Of a witness or group, or ``none``.
    """

    logs: tuple[Log, ...]
    witnesses: dict[str, Witness]
    groups: dict[str, Group]
    quorum: str

    @property
    def is_required(self) -> bool:
        """Whether any cosignature is."""
        return self.quorum != NONE

    def is_met(self, cosigners: AbstractSet[str]) -> bool:
        """Whether these witnesses are the quorum."""
        return self.quorum == NONE or self._counts(self.quorum, cosigners)

    def _counts(self, name: str, cosigners: AbstractSet[str]) -> bool:
        group = self.groups.get(name)
        if group is None:
            return name in cosigners
        return sum(self._counts(member, cosigners) for member in group.members) >= group.threshold

    def without_logs(self) -> Policy:
        """The same witnesses and quorum, for logs that are known from elsewhere."""
        return replace(self, logs=())

    def quorum_text(self) -> str:
        """The quorum in words."""
        group = self.groups.get(self.quorum)
        if group is None:
            return self.quorum
        return f"{group.threshold} of {', '.join(group.members)}"

    @classmethod
    def from_bytes(cls, data: bytes) -> Policy:
        """Read a policy.

        Raises:
            FormatError: Not one; says which line.
        """
        if len(data) > MAX_POLICY_BYTES:
            raise FormatError(f"a policy has at most {MAX_POLICY_BYTES} bytes")
        if not _ALLOWED.fullmatch(data):
            raise FormatError("a policy has control characters in it, or another line end than a newline")
        reader = _Reader()
        # NOTE: Latin-1 keeps every octet apart, as the specification wants names compared; a vkey and a URL are ASCII here.
        for number, line in enumerate(data.decode("latin-1").split("\n"), 1):
            words = [word for word in re.split(r"[ \t]+", line) if word]
            if not words or words[0].startswith("#"):
                continue
            try:
                reader.take(words)
            except FormatError as error:
                raise FormatError(f"line {number}: {error}") from error
        return reader.finish()


class _Reader:
    def __init__(self) -> None:
        self._logs: dict[str, Log] = {}
        self._witnesses: dict[str, Witness] = {}
        self._groups: dict[str, Group] = {}
        self._keys: set[str] = set()
        self._grouped: set[str] = set()
        self._quorum: str | None = None
        self._readers: dict[str, Callable[[list[str]], None]] = {
            "log": self._log,
            "witness": self._witness,
            "group": self._group,
            "quorum": self._quorum_line,
        }

    def take(self, words: list[str]) -> None:
        """Take a line."""
        read = self._readers.get(words[0])
        if read is None:
            raise FormatError(f"{words[0]!r} is none of {', '.join(self._readers)}")
        if max(len(self._logs), len(self._witnesses), len(self._groups)) >= _MOST:
            raise FormatError(f"a policy has at most {_MOST} logs, witnesses or groups")
        read(words[1:])

    def finish(self) -> Policy:
        """The whole."""
        if self._quorum is None:
            raise FormatError("a policy has exactly one quorum line; 'quorum none' asks for no witness")
        return Policy(tuple(self._logs.values()), self._witnesses, self._groups, self._quorum)

    def _log(self, words: list[str]) -> None:
        if len(words) not in {1, 2}:
            raise FormatError("it is: log VKEY [URL]")
        key = VerifierKey.from_text(words[0], LOG_KIND)
        # NOTE: One key may sign several logs, apart by origin: ours are. The specification calls that a duplicate; the name is its key here.
        if key.name in self._logs:
            raise FormatError(f"log {key.name!r} is there twice")
        self._logs[key.name] = Log(key, *words[1:])

    def _witness(self, words: list[str]) -> None:
        if len(words) not in {2, 3}:
            raise FormatError("it is: witness NAME VKEY [URL]")
        key = VerifierKey.from_text(words[1], COSIGNER_KIND)
        self._define(words[0])
        if key.key.keyid in self._keys:
            raise FormatError(f"the key of witness {words[0]!r} is another's already")
        self._keys.add(key.key.keyid)
        self._witnesses[words[0]] = Witness(words[0], key, *words[2:])

    def _group(self, words: list[str]) -> None:
        if len(words) < 3:  # noqa: PLR2004  # A name, a threshold and a member.
            raise FormatError("it is: group NAME all|any|K MEMBER...")
        name, threshold, *members = words
        for member in members:
            self._known(member)
            if member in self._grouped:
                raise FormatError(f"{member!r} is a member of a group already: it would count twice")
            self._grouped.add(member)
        self._define(name)
        words_of = {"any": 1, "all": len(members)}
        if threshold not in words_of and not _COUNT.fullmatch(threshold):
            raise FormatError(f"{threshold!r} is not all, any or a number from 1")
        least = words_of[threshold] if threshold in words_of else int(threshold)
        if least > len(members):
            raise FormatError(f"group {name!r} wants {least} of {len(members)} members")
        self._groups[name] = Group(name, least, tuple(members))

    def _quorum_line(self, words: list[str]) -> None:
        if len(words) != 1 or self._quorum is not None:
            raise FormatError("a policy has exactly one quorum line: quorum NAME")
        if words[0] != NONE:
            self._known(words[0])
        self._quorum = words[0]

    def _define(self, name: str) -> None:
        if name == NONE or name in self._witnesses or name in self._groups:
            raise FormatError(f"{name!r} is defined already")

    def _known(self, name: str) -> None:
        if name not in self._witnesses and name not in self._groups:
            raise FormatError(f"{name!r} is not defined on a line before")


def verify(note: str, policy: Policy, origin: str, keys: Iterable[PublicKey] = ()) -> Cosigned:
    """Verify that the log ``origin`` signed ``note`` and that the policy's quorum cosigned it.

    Args:
        note: Not trusted.
        policy: Whose witnesses count. Where it names logs, ``origin`` must be among them, with the key it states.
        origin: The log it must be of.
        keys: Pinned keys of the log; may be empty where the policy names logs.

    Raises:
        VerificationError: Not a checkpoint, of another log, not signed by it, or without the quorum.
    """
    pinned = list(keys)
    if policy.logs:
        named = [log.key.key for log in policy.logs if log.key.name == origin]
        if not named:
            raise VerificationError(f"the policy trusts no log {origin!r}")
        known = {key.keyid for key in pinned}
        pinned = [key for key in named if not pinned or key.keyid in known]
    found = checkpoints.verify_checkpoint(note, origin, pinned)
    verified = verify_cosignatures(note, [witness.key for witness in policy.witnesses.values()])
    cosignatures = {
        witness.name: verified[witness.key] for witness in policy.witnesses.values() if witness.key in verified
    }
    if not policy.is_met(cosignatures.keys()):
        seen = ", ".join(sorted(cosignatures)) or "nobody"
        raise VerificationError(
            f"the checkpoint of {origin!r} at size {found.size} is cosigned by {seen}; the policy wants {policy.quorum_text()}"
        )
    return Cosigned(found, cosignatures)


def log_keys(note: str, policy: Policy | None, trust: TrustRoot, since_ms: int = 0) -> tuple[PublicKey, ...]:
    """The keys of a log that count for a checkpoint: those that are not compromised, and those that were not yet when a quorum cosigned it.

    Args:
        note: Not trusted.
        policy: Whose witnesses count; without one, or without a quorum in it, no key that is compromised does.
        trust: Pinned keys.
        since_ms: Time of the log's last entry: a key that had ended by then did not sign what has that entry in it.

    Raises:
        VerificationError: A line of the note names a witness, and does not verify.
    """
    sound = trust.keys_since("log", since_ms)
    lost = [key for key in trust.trusted if key.purpose == "log" and key.compromised_from_ms is not None]
    if policy is None or not policy.is_required or not lost:
        return sound
    found = verify_cosignatures(note, [witness.key for witness in policy.witnesses.values()])
    seen_ms = {
        witness.name: found[witness.key].time_s * 1000 for witness in policy.witnesses.values() if witness.key in found
    }
    before = [
        key.key
        for key in lost
        if key.lasts_at(since_ms) and policy.is_met({name for name, at_ms in seen_ms.items() if key.is_sound_by(at_ms)})
    ]
    return (*sound, *before)
