"""A process logs one JSON object a line, and text where a person reads."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

SCRIPT = """
import logging
from licet_attestations.signer import logs
logs.configure()
log = logging.getLogger("room")
log.info("something happened", extra={"tenant": "acme"})
log.warning("look at \\x1b[31mthis", extra={"code": "broken"})
"""


def test_a_line_is_a_json_object_with_what_was_given() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    first, second = (json.loads(line) for line in ran.stderr.splitlines())
    assert (first["level"], first["logger"], first["event"]) == ("info", "room", "something happened")
    assert first["tenant"] == "acme"
    assert (second["level"], second["code"]) == ("warning", "broken")


def test_a_terminal_is_told_warnings_alone_as_text_that_cannot_steer_it() -> None:
    ours, theirs = pty.openpty()
    try:
        subprocess.run([sys.executable, "-c", SCRIPT], stdout=subprocess.DEVNULL, stderr=theirs, check=True)
        told = os.read(ours, 4096).decode()
    finally:
        os.close(theirs)
        os.close(ours)
    assert told.strip() == "warning: look at  [31mthis code=broken"
