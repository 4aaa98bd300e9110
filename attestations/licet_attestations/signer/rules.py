"""What the signer signs, and what it refuses: one pure class, no sockets.

Rules kept here:

1. A checkpoint is signed only if the log extends the last one signed, which is durable first (``state``).
2. A warrant is made only for an allowing decision that is proved to be in the tenant's log under a checkpoint this
   signer signed, was made at most 60 s ago, belongs to this very operation and parameters, and whose action may lead to
   the adapter operation asked for. It lives at most five minutes and names nothing of another tenant. It touches
   only what was decided on (``verify_touched``).
3. An object's key is made or unwrapped only under a live warrant of that tenant which names that object, for an
   operation that writes or reads objects. Whoever holds one may have a content proved to be the object's; of its key nothing is told.
4. A model is signed only under a live warrant to register exactly these files.
5. A tenant's key is destroyed only under a live warrant for it.
6. A statement is signed only if it is of a kind we know and says whose it is. Warrants are not made this way.
7. Each key has one purpose, so a signature for one can never be shown as a signature for another.
8. Time never runs backwards: what had expired stays expired.
9. A webhook's secret is derived from its tenant's key, for that webhook alone. It is shared with who receives, so what is
   signed with it is evidence of nothing, and no warrant is asked for.

10. An isolation answer for a pair is signed only if the proofs in it lead to a directory checkpoint of ours, and it says what follows
   from them. Who asks for one needs no other right.
11. A statement about an entry of a log is made here, of the entry alone, and only if the entry is proved to be in the log under a
   checkpoint of ours. Nor does that need another right.

A warrant is *spent* by the adapter that acts on it, not here: making and unwrapping keys repeats no effect.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from typing import TYPE_CHECKING, Any

from licet_attestations import canonical, dsse, isolation_pair, logged, merkle, oms, rotation, statement
from licet_attestations.checkpoint import Checkpoint, sign_checkpoint, verify_checkpoint
from licet_attestations.errors import FormatError, SignerRefused, VerificationError
from licet_attestations.leaf import Leaf, is_tenant, verify_commitment
from licet_attestations.signer import aead
from licet_attestations.tlogproof import TlogProof
from licet_attestations.warrant import (
    MAX_CLOCK_SKEW_MS,
    MAX_DECISION_AGE_MS,
    OPERATIONS_OF,
    DecisionRef,
    Warrant,
    sign_warrant,
    verify_touched,
    verify_warrant_is_ours,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from licet_attestations.signer.keystore import Keystore, WrappedKey
    from licet_attestations.signer.state import CheckpointState
    from licet_attestations.trustroot import TrustRoot

DEFAULT_LIFETIME_MS = 300_000

_WRITING = frozenset({"objects.put", "registry.register"})
# Whoever may write an object may also read back what an earlier attempt of theirs wrote.
_READING = frozenset({"objects.get", "objects.delete", "registry.read", "registry.delete"}) | _WRITING
# Whoever may hold an object must find it; no key of it is given for that.
_NAMING = frozenset({"objects.hold", "objects.lift", "registry.hold", "registry.lift"}) | _READING
_MADE_HERE = frozenset({statement.WARRANT, statement.ISOLATION_PAIR, *rotation.KINDS, *logged.KINDS})
"""Statements that are made of what was verified, never signed as they come."""
_MAX_OBJECT_ID_CHARS = 512
_WEBHOOK = re.compile(r"wh-[0-9a-f]{32}")
_MESSAGE = re.compile(r"msg_[0-9A-Za-z]{1,64}")


class SignerRules:
    """All that the signer does, over its keys and its state.

    Args:
        keystore: Opened keys.
        state: Last checkpoints; written by this object alone.
        clock: Milliseconds since the epoch.
        new_id: Makes warrant ids: 32 hex characters, never the same twice.
    """

    def __init__(
        self,
        keystore: Keystore,
        state: CheckpointState,
        clock: Callable[[], int],
        new_id: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        self._keys = keystore
        self._state = state
        self._clock = clock
        self._new_id = new_id

    @property
    def trust_root(self) -> TrustRoot:
        """The public halves of the keys."""
        return self._keys.trust_root

    def sign_checkpoint(self, tenant: str, size: int, root: bytes, proof: Sequence[bytes]) -> str:
        """Sign the head of a tenant's log as a note (rule 1).

        Args:
            tenant: Whose log.
            size: Its entries.
            root: Root over them, 32 bytes.
            proof: Consistency with the last checkpoint signed; empty at the beginning or for the same size.

        Raises:
            SignerRefused: Smaller, or forked.
            SignerUnavailable: The state is not durable; nothing was signed.
        """
        self._state.advance(tenant, size, root, proof, self._now_ms())
        checkpoint = Checkpoint(self.trust_root.origin(tenant), size, root)
        return sign_checkpoint(checkpoint, self._keys.signing_key("log"))

    def last_checkpoint(self, tenant: str) -> tuple[int, bytes]:
        """Return size and root of the last head of a tenant's log: from where a consistency proof must start."""
        head = self._state.last(_tenant(tenant))
        return (0, merkle.EMPTY_ROOT) if head is None else (head.size, head.root)

    def mint(
        self,
        *,
        tenant: str,
        leaf: str,
        leaf_index: int,
        salt: bytes,
        record: str,
        proof: Sequence[bytes],
        checkpoint: str,
        adapter: str,
        operation: str,
        step: str,
        attempt: int,
        operation_id: str,
        resources: Mapping[str, str],
        parameters: Any,
        lifetime_ms: int = DEFAULT_LIFETIME_MS,
    ) -> bytes:
        """Make a warrant for one attempt at one step (rule 2).

        Args:
            tenant: Whose decision, and whose things.
            leaf: The decision's leaf, as text.
            leaf_index: Its index in the tenant's log.
            salt: Salt of its commitment.
            record: The decision record, as text.
            proof: Inclusion of the leaf under ``checkpoint``.
            checkpoint: A note that this signer signed.
            adapter: Instance that is to act.
            operation: What it is to do.
            step: Step of the accepted operation.
            attempt: From 1.
            operation_id: The accepted operation.
            resources: What this step touches, by name: digests, or references of this tenant.
            parameters: The accepted operation's parameters.
            lifetime_ms: At most, and usually, five minutes.

        Returns:
            The DSSE envelope.

        Raises:
            SignerRefused: Code ``signer.unlogged``, ``signer.denied``, ``signer.stale``, ``signer.operation`` or
                ``signer.resources``.
        """
        now_ms = self._now_ms()
        entry = self._verify_logged(
            tenant=_tenant(tenant),
            leaf=leaf,
            leaf_index=leaf_index,
            salt=salt,
            record=record,
            proof=proof,
            checkpoint=checkpoint,
        )
        decided = _read_record(record)
        # What was decided is an allow, of this tenant, without errors (errors mean no).
        if decided["decision"] != "allow" or decided["errors"] != [] or decided["tenant"] != tenant:
            raise SignerRefused("the decision does not allow this tenant anything", code="signer.denied")
        # It is fresh, by the older of the two times it bears.
        oldest_ms = min(entry.time_ms, decided["time_ms"])
        if (
            not now_ms - MAX_DECISION_AGE_MS <= oldest_ms
            or max(entry.time_ms, decided["time_ms"]) > now_ms + MAX_CLOCK_SKEW_MS
        ):
            raise SignerRefused(
                "the decision is more than 60 s old, or from the future: decide again", code="signer.stale"
            )
        # It is about this very operation, and its action leads to what the adapter is to do.
        accepted = decided["operation"]
        if accepted["id"] != operation_id or accepted["parameters_digest"] != canonical.digest_hex(parameters):
            raise SignerRefused("the decision was about another operation or parameters", code="signer.operation")
        if operation not in OPERATIONS_OF.get(decided["action"], frozenset()):
            raise SignerRefused(f"{decided['action']!r} does not lead to {operation!r}", code="signer.operation")
        try:
            verify_touched(
                resources, tenant=tenant, operation=operation, operation_id=operation_id, decided=accepted["resources"]
            )
        except VerificationError as error:
            raise SignerRefused(str(error), code="signer.resources") from error
        warrant = Warrant(
            id=self._new_id(),
            tenant=tenant,
            adapter=adapter,
            operation=operation,
            step=step,
            attempt=attempt,
            operation_id=operation_id,
            resources=dict(resources),
            parameters_digest_hex=accepted["parameters_digest"],
            decision=DecisionRef(decided["id"], leaf_index, hashlib.sha256(record.encode()).hexdigest()),
            principal=f"{decided['principal']['type']}::{decided['principal']['id']}",
            action=decided["action"],
            issued_at_ms=now_ms,
            expires_at_ms=now_ms + lifetime_ms,
            log_proof=TlogProof(leaf_index, tuple(proof), checkpoint).to_text(),
            leaf=leaf,
        )
        return sign_warrant(warrant, self._keys.signing_key("warrant"))

    def attest(self, tenant: str, statement_bytes: bytes) -> bytes:
        """Sign an in-toto statement that says it is ``tenant``'s (rule 6); return the DSSE envelope."""
        claim = statement.Statement.from_bytes(statement_bytes)
        if claim.predicate_type not in statement.PREDICATE_TYPES - _MADE_HERE:
            raise SignerRefused(
                f"statements of type {claim.predicate_type!r} are not attested", code="signer.predicate"
            )
        if statement.tenant_of(claim.predicate) != _tenant(tenant):
            raise SignerRefused("the statement does not say that it is this tenant's", code="signer.tenant")
        return dsse.sign(statement_bytes, dsse.IN_TOTO_PAYLOAD_TYPE, self._keys.signing_key("attestation")).to_json()

    def attest_isolation(self, tenant: str, predicate: Mapping[str, Any]) -> bytes:
        """Sign the isolation answer of one pair, about ``tenant``'s log (rule 10); return the DSSE envelope."""
        try:
            answer = isolation_pair.verify_predicate(predicate, self.trust_root)
        except VerificationError as error:
            raise SignerRefused(str(error), code="signer.isolation") from error
        if answer.opened.state.tenant != _tenant(tenant):
            raise SignerRefused("the answer is about another tenant's log", code="signer.tenant")
        claim = isolation_pair.pair_statement(predicate, self.trust_root.origin(tenant))
        key = self._keys.signing_key("attestation")
        return dsse.sign(claim.to_bytes(), dsse.IN_TOTO_PAYLOAD_TYPE, key).to_json()

    def attest_entry(
        self,
        *,
        tenant: str,
        leaf: str,
        leaf_index: int,
        salt: bytes,
        record: str,
        proof: Sequence[bytes],
        checkpoint: str,
    ) -> bytes:
        """Sign what an entry of ``tenant``'s log says: a decision, or policies that came into force (rule 11).

        Args:
            tenant: Whose log.
            leaf: The entry's leaf, as text.
            leaf_index: Its index.
            salt: Salt of its commitment.
            record: Its record, as text.
            proof: Inclusion of the leaf under ``checkpoint``.
            checkpoint: A note that this signer signed.

        Returns:
            The DSSE envelope.

        Raises:
            SignerRefused: Code ``signer.unlogged``, or ``signer.predicate`` for a kind that is not attested.
        """
        log_proof = TlogProof(leaf_index, tuple(proof), checkpoint).to_text()
        entry = logged.LoggedEntry(_tenant(tenant), leaf, salt, record.encode(), log_proof)
        try:
            logged.verify_entry(entry, self.trust_root)
            claim = logged.entry_statement(entry)
        except VerificationError as error:
            raise SignerRefused(f"the entry is not proved to be in the log: {error}", code="signer.unlogged") from error
        except FormatError as error:
            raise SignerRefused(str(error), code="signer.predicate") from error
        key = self._keys.signing_key("attestation")
        return dsse.sign(claim.to_bytes(), dsse.IN_TOTO_PAYLOAD_TYPE, key).to_json()

    def sign_model(self, tenant: str, version: str, files: Mapping[str, str], warrant: bytes) -> bytes:
        """Sign a model per OpenSSF Model Signing (rule 4).

        Args:
            tenant: Whose model.
            version: Its ref, which becomes the signed name.
            files: File name to SHA-256 in hex; exactly those that the warrant names.
            warrant: For ``registry.register``.

        Returns:
            The Sigstore bundle, as JSON.
        """
        permitted = self._live(tenant, warrant, frozenset({"registry.register"}))
        named = {
            name.removeprefix("digest:"): value
            for name, value in permitted.resources.items()
            if name.startswith("digest:")
        }
        if not files or dict(files) != named or permitted.resources.get("version") != version:
            raise SignerRefused("the warrant is for other model files", code="signer.resources")
        return oms.sign_model(version, files, self._keys.signing_key("model"))

    def new_data_key(self, tenant: str, object_id: str, warrant: bytes) -> WrappedKey:
        """Make a key for one object (rule 3)."""
        self._live(tenant, warrant, _WRITING, object_id)
        return self._keys.new_object_key(tenant, object_id)

    def unwrap(self, tenant: str, object_id: str, wrapped: bytes, warrant: bytes) -> bytes:
        """Return the key of one object (rule 3)."""
        self._live(tenant, warrant, _READING, object_id)
        return self._keys.unwrap_object_key(tenant, object_id, wrapped)

    def object_tag(self, tenant: str, object_id: str, wrapped: bytes, digest_hex: str, warrant: bytes) -> str:
        """Return what the header of an object bears for a content, in hex: it shows whether that is the one (rule 3)."""
        if not statement.is_sha256_hex(digest_hex):
            raise SignerRefused("not a SHA-256 digest", code="signer.digest")
        self._live(tenant, warrant, _NAMING, object_id)
        key = self._keys.unwrap_object_key(tenant, object_id, wrapped)
        return aead.object_tag_hex(key, tenant, object_id, digest_hex)

    def object_name(self, tenant: str, digest_hex: str, warrant: bytes) -> str:
        """Return the name under which to store what ``digest_hex`` identifies (rule 3, without the object)."""
        if not statement.is_sha256_hex(digest_hex):
            raise SignerRefused("not a SHA-256 digest", code="signer.digest")
        self._live(tenant, warrant, _NAMING)
        return self._keys.object_name(tenant, digest_hex)

    def destroy_tenant_key(self, tenant: str, warrant: bytes) -> bool:
        """Erase a tenant's key, and with it the readability of all it sealed (rule 5); doing it again is harmless."""
        permitted = self._live(tenant, warrant, frozenset({"keys.destroy"}))
        if permitted.adapter != "signer":
            raise SignerRefused("the warrant is for another adapter", code="warrant.other-adapter")
        return self._keys.destroy_tenant_key(tenant)

    def webhook_secret(self, tenant: str, webhook: str) -> str:
        """Return a webhook's secret as its receiver is told it: ``whsec_`` and Base64 (rule 9)."""
        secret = self._keys.webhook_secret(_tenant(tenant), _webhook(webhook))
        return "whsec_" + base64.b64encode(secret).decode()

    def sign_webhook(self, tenant: str, webhook: str, message: str, timestamp_s: int, body: bytes) -> str:
        """Sign a message to a webhook (rule 9); return the value of ``webhook-signature``.

        Source: Standard Webhooks 1.0, "Signature scheme".
        """
        # The three parts are joined by dots, so the first two hold none.
        if not _MESSAGE.fullmatch(message) or timestamp_s < 0:
            raise SignerRefused("not the identifier and time of a message", code="signer.message")
        content = f"{message}.{timestamp_s}.".encode() + body
        secret = self._keys.webhook_secret(_tenant(tenant), _webhook(webhook))
        return "v1," + base64.b64encode(hmac.digest(secret, content, "sha256")).decode()

    def _now_ms(self) -> int:
        return self._state.now_ms(self._clock())

    def _verify_logged(
        self,
        *,
        tenant: str,
        leaf: str,
        leaf_index: int,
        salt: bytes,
        record: str,
        proof: Sequence[bytes],
        checkpoint: str,
    ) -> Leaf:
        try:
            entry = Leaf.from_bytes(leaf.encode())
            keys = self.trust_root.keys("log")
            head = verify_checkpoint(checkpoint, self.trust_root.origin(tenant), keys)
            merkle.verify_inclusion(entry.hash(), leaf_index, head.size, proof, head.root)
            verify_commitment(entry, salt, record.encode())
        except (FormatError, VerificationError) as error:
            raise SignerRefused(
                f"the decision is not proved to be in the log: {error}", code="signer.unlogged"
            ) from error
        if entry.kind != "decision" or entry.owner != tenant:
            raise SignerRefused("the log entry is not this tenant's decision", code="signer.unlogged")
        return entry

    def _live(self, tenant: str, warrant: bytes, operations: frozenset[str], object_id: str | None = None) -> Warrant:
        permitted = verify_warrant_is_ours(warrant, trust=self.trust_root, now_ms=self._now_ms())
        if permitted.tenant != _tenant(tenant):
            raise SignerRefused("the warrant is another tenant's", code="warrant.other-resource")
        if permitted.operation not in operations:
            raise SignerRefused(
                f"a warrant for {permitted.operation!r} does not permit this", code="warrant.other-operation"
            )
        if object_id is not None:
            if not 0 < len(object_id) <= _MAX_OBJECT_ID_CHARS or statement.is_sha256_hex(object_id):
                raise SignerRefused("not an object id", code="signer.object")
            if object_id not in permitted.resources.values():
                raise SignerRefused("the warrant does not name this object", code="warrant.other-resource")
        return permitted


def _tenant(tenant: str) -> str:
    if not is_tenant(tenant):
        raise SignerRefused("not a tenant", code="signer.tenant")
    return tenant


def _webhook(webhook: str) -> str:
    if not _WEBHOOK.fullmatch(webhook):
        raise SignerRefused("not a webhook", code="signer.webhook")
    return webhook


def _read_record(record: str) -> dict[str, Any]:
    """Read what of a decision record a warrant depends on; anything missing or odd is a refusal."""
    value = canonical.loads(record.encode(), canonical=True)
    match value:
        case {
            "v": 1,
            "id": str(),
            "time_ms": int(),
            "tenant": str(),
            "principal": {"type": str(), "id": str()},
            "action": str(),
            "decision": str(),
            "errors": list(),
            "operation": {"id": str(), "parameters_digest": str(), "resources": list()},
        }:
            return dict(value)
    raise SignerRefused("not the record of a decision about an operation", code="signer.operation")
