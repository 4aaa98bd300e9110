"""Forged copies of an evidence archive, to show that they are refused."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path
from typing import Any, Final

from licet_attestations import archive, canonical, dsse, evidence
from licet_attestations.checkpoint import Checkpoint, parse_note, sign_checkpoint
from licet_attestations.keys import PrivateKey
from licet_attestations.statement import ISOLATION, Statement

_P256: Final = "ecdsa-p256-sha256"


def flip_one_byte(source: Path, target: Path) -> str:
    """Copy an archive with one byte of one record changed; return the record's name."""
    data = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as zipped:
        name = next(n for n in zipped.namelist() if n.startswith("records/") and b'"deny"' in zipped.read(n))
        offset = data.index(zipped.read(name)) + zipped.read(name).index(b'"deny"') + 1
    data[offset] ^= 0x01
    target.write_bytes(data)
    return name


def resign(source: Path, target: Path, *, tenant: str, origin: str) -> None:
    """Copy an archive with everything in it signed anew by other keys, as a forger would who holds the whole log."""
    log_key, key = PrivateKey.generate("ed25519"), PrivateKey.generate(_P256)

    def sign(payload: bytes) -> bytes:
        return dsse.sign(payload, dsse.IN_TOTO_PAYLOAD_TYPE, key).to_json()

    with zipfile.ZipFile(source) as zipped:
        head, _, _ = parse_note(zipped.read(archive.CHECKPOINT).decode())
        leaves = zipped.read(archive.LEAVES).splitlines()
        records = [_record(zipped, index) for index in range(len(leaves))]
        payloads = [
            dsse.Envelope.from_json(zipped.read(name)).payload
            for name in sorted(zipped.namelist())
            if name.startswith("attestations/")
        ]
        isolation = dsse.Envelope.from_json(zipped.read(archive.ISOLATION)).payload
        if Statement.from_bytes(isolation).predicate_type != ISOLATION:
            raise ValueError("the archive holds no isolation answer")
        evidence.build_archive(
            target,
            tenant=tenant,
            origin=origin,
            leaves=leaves,
            records=records,
            facts=[zipped.read(n) for n in sorted(zipped.namelist()) if n.startswith("facts/")],
            bundles=[zipped.read(n) for n in sorted(zipped.namelist()) if n.startswith("bundles/")],
            attestations=[sign(payload) for payload in payloads],
            checkpoint_note=sign_checkpoint(Checkpoint(origin, head.size, head.root), log_key),
            sign_export=sign,
            isolation=sign(isolation),
            exported_at_ms=time.time_ns() // 1_000_000,
        )


def _record(zipped: zipfile.ZipFile, index: int) -> tuple[int, bytes, bytes]:
    stored: dict[str, Any] = json.loads(zipped.read(f"records/{index}.json"))
    return index, bytes.fromhex(stored["salt"]), canonical.dumps(stored["record"])
