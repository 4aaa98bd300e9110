"""What an adapter is constructed with: its folder, the trust root, the signer, time and options."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from licet_adapters.ports.base import Clock
    from licet_attestations.trustroot import TrustRoot


class DataKey(Protocol):
    """A fresh object key: ``key`` (32 bytes, never stored) and ``wrapped`` (stored beside what it seals)."""

    @property
    def key(self) -> bytes:
        """The key itself."""
        ...

    @property
    def wrapped(self) -> bytes:
        """The key as only the signer can open it."""
        ...


class WebhookSigner(Protocol):
    """Who signs messages to webhooks: the signer."""

    def sign_webhook(self, tenant: str, webhook: str, message: str, timestamp_s: int, body: bytes) -> str:
        """Return the value of the header ``webhook-signature``."""
        ...


class KeySource(Protocol):
    """Where object keys come from: the signer. It checks the warrant too, before it gives any.

    Every method raises ``licet_attestations.errors.SignerError``, or ``VerificationError`` for a bad warrant.
    """

    def new_data_key(self, tenant: str, object_id: str, warrant: bytes) -> DataKey:
        """Make a key for one object."""
        ...

    def unwrap(self, tenant: str, object_id: str, wrapped: bytes, warrant: bytes) -> bytes:
        """Return the key of one object."""
        ...

    def object_tag(self, tenant: str, object_id: str, wrapped: bytes, digest_hex: str, warrant: bytes) -> str:
        """Return the tag (hex) that an object's header bears if its content has that digest; no key is told."""
        ...

    def object_name(self, tenant: str, digest_hex: str, warrant: bytes) -> str:
        """Return the name (hex) under which to store what ``digest_hex`` identifies; it reveals nothing of it."""
        ...


class ModelSigner(Protocol):
    """Who signs models: the signer."""

    def sign_model(self, tenant: str, version: str, files: Mapping[str, str], warrant: bytes) -> bytes:
        """Return the OpenSSF Model Signing bundle over ``files`` (name to SHA-256 hex), the model named ``version``."""
        ...


class SignerPort(KeySource, ModelSigner, WebhookSigner, Protocol):
    """What of the signer an adapter may use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterContext:
    """All that an adapter is constructed with; an entry point's class takes it as its one argument.

    Attributes:
        data_dir: Where this adapter keeps its things; its own.
        trust_root: Public keys to verify warrants and signatures with.
        signer: Keys and model signatures, under warrant.
        clock: Time.
        run_dir: Where the sockets of this installation's processes are; for an adapter whose substance is another process.
        options: What the operator configured for adapters, by name of the setting (``s3_bucket``); read-only.
    """

    data_dir: Path
    trust_root: TrustRoot
    signer: SignerPort
    clock: Clock
    run_dir: Path | None = None
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def option(self, name: str, default: str = "") -> str:
        """What was configured under ``name``; ``default`` if nothing was."""
        return self.options.get(name, "") or default
