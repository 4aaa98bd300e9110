"""Writes the keys of a trust root as files that other people's tools take. Needs Python alone, nothing of Licet.

Usage: python keys.py TRUST-ROOT.json TENANT FOLDER

FOLDER gets PURPOSE.pem for attestations, models and warrants, and log.vkey for the log of TENANT (C2SP signed-note). Where a purpose
has had several keys, those that count no more are PURPOSE-KEYID.pem and log-KEYID.vkey: they verify what was signed in their time. One
that is compromised has that in its file's name: what it signed counts only if the log shows that it is from before.
"""

import base64
import hashlib
import json
import sys
import textwrap
from pathlib import Path

RAW_BYTES = 32  # An Ed25519 key stands at the end of its SubjectPublicKeyInfo.


def pem(spki: str) -> str:
    """A key as PEM."""
    return f"-----BEGIN PUBLIC KEY-----\n{textwrap.fill(spki, 64)}\n-----END PUBLIC KEY-----\n"


def vkey(spki: str, origin: str) -> str:
    """A log's key as C2SP vkey text."""
    key = b"\x01" + base64.b64decode(spki)[-RAW_BYTES:]
    name = hashlib.sha256(origin.encode() + b"\n" + key).digest()[:4].hex()
    return f"{origin}+{name}+{base64.b64encode(key).decode()}\n"


def main() -> None:
    """Write the files."""
    root = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    origin = f"{root['log_origin_prefix']}/{sys.argv[2]}"
    folder = Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    for key in root["keys"]:
        told = key["purpose"] if key["valid_until_ms"] is None else f"{key['purpose']}-{key['keyid'][:16]}"
        told += "-compromised" if "compromised_from_ms" in key else ""
        text = vkey(key["spki"], origin) if key["purpose"] == "log" else pem(key["spki"])
        (folder / (told + (".vkey" if key["purpose"] == "log" else ".pem"))).write_text(text)


main()
