"""The signer as its callers see it: one method for each of its own, over the Unix socket.

Rules kept here:

- Whatever goes wrong is a ``SignerError``: ``SignerRefused`` with the signer's own code, or ``SignerUnavailable``.
- Nothing is retried here: who calls knows whether to ask again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from licet_attestations import rpc
from licet_attestations.errors import FormatError, SignerRefused, SignerUnavailable
from licet_attestations.rpc import decode_bytes, encode_bytes
from licet_attestations.trustroot import TrustRoot
from licet_attestations.warrant import MAX_LIFETIME_MS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_UNAVAILABLE = frozenset({"internal", "signer.unavailable", "signer.state"})


@dataclass(frozen=True, slots=True)
class DataKey:
    """A fresh object key: ``key`` (never stored) and ``wrapped`` (stored beside what it seals)."""

    key: bytes = field(repr=False)
    wrapped: bytes


class SignerClient:
    """Calls the signer at ``socket_path``; may be shared by threads.

    Every method raises ``SignerRefused`` or ``SignerUnavailable``.
    """

    def __init__(self, socket_path: Path, timeout_s: float = 10.0) -> None:
        self._path = socket_path
        self._timeout_s = timeout_s

    def public(self) -> TrustRoot:
        """The signer's public keys. Pin them once; never ask for them to verify what came from the same place."""
        return TrustRoot.from_dict(self._call("public"))

    def sign_checkpoint(self, tenant: str, size: int, root: bytes, proof: Sequence[bytes]) -> str:
        """See ``SignerRules.sign_checkpoint``."""
        hashes = [part.hex() for part in proof]
        return str(self._call("sign_checkpoint", tenant=tenant, size=size, root=root.hex(), proof=hashes)["note"])

    def last_checkpoint(self, tenant: str) -> tuple[int, bytes]:
        """See ``SignerRules.last_checkpoint``."""
        answer = self._call("last_checkpoint", tenant=tenant)
        return int(answer["size"]), bytes.fromhex(answer["root"])

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
        lifetime_ms: int = MAX_LIFETIME_MS,
    ) -> bytes:
        """See ``SignerRules.mint``."""
        answer = self._call(
            "mint",
            tenant=tenant,
            leaf=leaf,
            leaf_index=leaf_index,
            salt=salt.hex(),
            record=record,
            proof=[part.hex() for part in proof],
            checkpoint=checkpoint,
            adapter=adapter,
            operation=operation,
            step=step,
            attempt=attempt,
            operation_id=operation_id,
            resources=dict(resources),
            parameters=parameters,
            lifetime_ms=lifetime_ms,
        )
        return decode_bytes(answer["envelope"])

    def attest(self, tenant: str, statement_bytes: bytes) -> bytes:
        """See ``SignerRules.attest``."""
        return decode_bytes(self._call("attest", tenant=tenant, statement=encode_bytes(statement_bytes))["envelope"])

    def attest_isolation(self, tenant: str, predicate: Mapping[str, Any]) -> bytes:
        """See ``SignerRules.attest_isolation``."""
        return decode_bytes(self._call("attest_isolation", tenant=tenant, predicate=dict(predicate))["envelope"])

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
        """See ``SignerRules.attest_entry``."""
        answer = self._call(
            "attest_entry",
            tenant=tenant,
            leaf=leaf,
            leaf_index=leaf_index,
            salt=salt.hex(),
            record=record,
            proof=[part.hex() for part in proof],
            checkpoint=checkpoint,
        )
        return decode_bytes(answer["envelope"])

    def sign_model(self, tenant: str, version: str, files: Mapping[str, str], warrant: bytes) -> bytes:
        """See ``SignerRules.sign_model``."""
        answer = self._call(
            "sign_model", tenant=tenant, version=version, files=dict(files), warrant=encode_bytes(warrant)
        )
        return decode_bytes(answer["bundle"])

    def new_data_key(self, tenant: str, object_id: str, warrant: bytes) -> DataKey:
        """See ``SignerRules.new_data_key``."""
        answer = self._call("new_data_key", tenant=tenant, object_id=object_id, warrant=encode_bytes(warrant))
        return DataKey(key=decode_bytes(answer["key"]), wrapped=decode_bytes(answer["wrapped"]))

    def unwrap(self, tenant: str, object_id: str, wrapped: bytes, warrant: bytes) -> bytes:
        """See ``SignerRules.unwrap``."""
        answer = self._call(
            "unwrap", tenant=tenant, object_id=object_id, wrapped=encode_bytes(wrapped), warrant=encode_bytes(warrant)
        )
        return decode_bytes(answer["key"])

    def object_tag(self, tenant: str, object_id: str, wrapped: bytes, digest_hex: str, warrant: bytes) -> str:
        """See ``SignerRules.object_tag``."""
        answer = self._call(
            "object_tag",
            tenant=tenant,
            object_id=object_id,
            wrapped=encode_bytes(wrapped),
            digest_hex=digest_hex,
            warrant=encode_bytes(warrant),
        )
        return str(answer["tag"])

    def object_name(self, tenant: str, digest_hex: str, warrant: bytes) -> str:
        """See ``SignerRules.object_name``."""
        answer = self._call("object_name", tenant=tenant, digest_hex=digest_hex, warrant=encode_bytes(warrant))
        return str(answer["name"])

    def webhook_secret(self, tenant: str, webhook: str) -> str:
        """See ``SignerRules.webhook_secret``."""
        return str(self._call("webhook_secret", tenant=tenant, webhook=webhook)["secret"])

    def sign_webhook(self, tenant: str, webhook: str, message: str, timestamp_s: int, body: bytes) -> str:
        """See ``SignerRules.sign_webhook``."""
        answer = self._call(
            "sign_webhook",
            tenant=tenant,
            webhook=webhook,
            message=message,
            timestamp_s=timestamp_s,
            body=encode_bytes(body),
        )
        return str(answer["signature"])

    def destroy_tenant_key(self, tenant: str, warrant: bytes) -> bool:
        """See ``SignerRules.destroy_tenant_key``."""
        return bool(self._call("destroy_tenant_key", tenant=tenant, warrant=encode_bytes(warrant))["existed"])

    def _call(self, method: str, **params: Any) -> Any:
        try:
            return rpc.call(self._path, method, params, self._timeout_s)
        except rpc.RpcUnavailable as error:
            raise SignerUnavailable(str(error)) from error
        except rpc.RpcFault as error:
            if error.code in _UNAVAILABLE:
                raise SignerUnavailable(str(error), code=error.code) from error
            raise SignerRefused(str(error), code=error.code) from error
        except FormatError as error:
            raise SignerRefused(f"the request cannot be sent: {error}", code=error.code) from error
