"""The tracks on which a model version is approved."""

from __future__ import annotations

from typing import Final

TRACKS: Final = ("engineering", "model-risk", "security", "legal", "compliance")
