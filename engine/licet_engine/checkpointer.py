"""Has checkpoints signed for ``licet backup``, as the one user that may: the api's.

Run as ``python -m licet_engine.checkpointer SOCKET``. A line on standard input is a request, ``{"tenant", "size", "root",
"proof"}`` or ``{"tenant"}`` for the last checkpoint alone; a line on standard output its answer. It opens nothing but the
signer's socket, and ends with its input.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from licet_attestations.errors import SignerRefused, SignerUnavailable
from licet_attestations.signer.client import SignerClient


def _answer(signer: SignerClient, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        if "size" in asked:
            proof = [bytes.fromhex(part) for part in asked["proof"]]
            note = signer.sign_checkpoint(asked["tenant"], asked["size"], bytes.fromhex(asked["root"]), proof)
            return {"note": note}
        size, root = signer.last_checkpoint(asked["tenant"])
    except SignerRefused as error:
        return {"refused": str(error), "code": error.code}
    except SignerUnavailable as error:
        return {"unavailable": str(error)}
    return {"size": size, "root": root.hex()}


def main() -> None:
    """Answer until there is nothing more to read."""
    signer = SignerClient(Path(sys.argv[1]))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(signer, json.loads(line))) + "\n")
        sys.stdout.flush()


class Checkpointer:
    """The signer, as a process of another user reaches it. To be closed.

    Args:
        command: What starts that process.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None and self._process.stdout is not None:
            self._process.stdin.close()
            self._process.stdout.close()
        self._process.wait()

    def last_checkpoint(self, tenant: str) -> tuple[int, bytes]:
        """See ``SignerClient``."""
        told = self._ask(tenant=tenant)
        return int(told["size"]), bytes.fromhex(told["root"])

    def sign_checkpoint(self, tenant: str, size: int, root: bytes, proof: Sequence[bytes]) -> str:
        """See ``SignerClient``."""
        hashes = [part.hex() for part in proof]
        return str(self._ask(tenant=tenant, size=size, root=root.hex(), proof=hashes)["note"])

    def _ask(self, **asked: Any) -> dict[str, Any]:
        if self._process.stdin is None or self._process.stdout is None:
            raise SignerUnavailable("the process that has checkpoints signed has no pipes")
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            line = self._process.stdout.readline()
        except OSError as error:
            raise SignerUnavailable(f"the process that has checkpoints signed ended: {error.strerror}") from error
        if not line:
            raise SignerUnavailable("the process that has checkpoints signed ended")
        told: dict[str, Any] = json.loads(line)
        if "refused" in told:
            raise SignerRefused(told["refused"], code=told["code"])
        if "unavailable" in told:
            raise SignerUnavailable(told["unavailable"])
        return told


if __name__ == "__main__":
    main()
