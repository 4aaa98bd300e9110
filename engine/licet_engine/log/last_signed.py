"""What the signer signed last, for those who check logs on the signer's machine: from its socket, or from its own files."""

from __future__ import annotations

from licet_attestations.errors import LicetAttestationError, SignerUnavailable
from licet_attestations.signer.client import SignerClient
from licet_attestations.signer.state import Head
from licet_engine.settings import Settings

_TIMEOUT_S = 3.0


class SignersWord:
    """The signer's last checkpoints.

    Args:
        settings: Where it is.

    Attributes:
        unknown: Why they cannot be told; empty if they can.
    """

    def __init__(self, settings: Settings) -> None:
        self._client = SignerClient(settings.signer_socket, _TIMEOUT_S)
        self._folder = settings.signer_data / "state"
        self.unknown = ""

    def last_signed(self, tenant: str) -> tuple[int, bytes] | None:
        """Size and root of what it signed last of a log; size 0 before the first, None where it cannot be told."""
        try:
            return self._client.last_checkpoint(tenant)
        except LicetAttestationError as error:
            reason = str(error)
        try:
            head = Head.from_bytes((self._folder / f"{tenant}.json").read_bytes())
        except FileNotFoundError:
            if self._folder.is_dir():
                return (0, b"")
            self.unknown = f"the signer's last checkpoints: it does not answer ({reason}), and its files are not here"
            return None
        except (OSError, SignerUnavailable) as error:
            self.unknown = f"the signer's last checkpoints: it does not answer, and its files cannot be read ({error})"
            return None
        return head.size, head.root
