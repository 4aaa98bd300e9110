"""Verifies DSSE envelopes with securesystemslib, the library of TUF and in-toto. Needs `pip install "securesystemslib[crypto]"`.

Usage: python dsse_verify.py KEY.pem ENVELOPE.json...
"""

import contextlib
import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey


def main() -> None:
    """Verify every file, or end at the first that is not verified."""
    public = load_pem_public_key(Path(sys.argv[1]).read_bytes())
    for path in map(Path, sys.argv[2:]):
        envelope = Envelope.from_dict(json.loads(path.read_bytes()))
        # The name of a key is a hint: whatever it is, this key must have signed. (A rotation of keys is signed by several.)
        for keyid in envelope.signatures:
            with contextlib.suppress(VerificationError):
                envelope.verify([SSlibKey.from_crypto(public, keyid)], 1)
                break
        else:
            sys.exit(f"NOT verified: {path.name}: the key did not sign it")
        print(f"verified: {path.name}: {json.loads(envelope.payload)['predicateType']}")


main()
