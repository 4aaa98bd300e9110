"""Shows that an entry of the log names an attestation. Needs Python alone, nothing of Licet.

Usage: python named.py ENVELOPE.json ENTRY.json

That the entry's leaf is in the log, tlogverify shows; here the way from the leaf to the statement: the leaf commits to salt and record, and
the record names the SHA-256 of the statement.
"""

import base64
import datetime as dt
import hashlib
import json
import sys
from pathlib import Path


def main() -> None:
    """Compare, and tell since when the log has it."""
    envelope, entry = (json.loads(Path(name).read_bytes()) for name in sys.argv[1:3])
    digest = hashlib.sha256(base64.b64decode(envelope["payload"])).hexdigest()
    leaf, record = json.loads(entry["leaf"]), entry["record"].encode()
    if leaf["commitment"] != hashlib.sha256(bytes.fromhex(entry["salt"]) + record).hexdigest():
        sys.exit("NOT verified: the leaf commits to another record")
    if leaf["kind"] != "attestation" or json.loads(record)["digest"] != digest:
        sys.exit("NOT verified: the entry names another attestation")
    since = dt.datetime.fromtimestamp(leaf["time_ms"] / 1000, dt.UTC)
    print(f"verified: {digest[:16]} of {entry['tenant']}, in the log since {since:%Y-%m-%d %H:%M:%S} UTC")


main()
