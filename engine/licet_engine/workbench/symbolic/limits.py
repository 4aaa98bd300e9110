"""What a proof does not show, in sentences that are printed beside every proof."""

from __future__ import annotations

from typing import Final

__all__ = ["LIMITS"]

LIMITS: Final[tuple[str, ...]] = (
    (
        "Every entity that a request or another entity refers to is taken to exist; of entities that are missing nothing is"
        " proved (Licet denies where a fact is missing)."
    ),
    (
        "Requests and entities are taken to be valid for the schema, as the service checks them: an action asked with types that"
        " the schema does not allow is not looked at."
    ),
    "Templates are not proved: link them first.",
    (
        "Texts are any length in the proof; what the service bounds is narrower. Of characters above U+2FFFF up to 2,048"
        " different ones are told apart."
    ),
    "Each request is proved by itself: what an order of several requests leads to, and whether facts are true, is outside.",
    (
        "What a condition does with types that depend on the request, as two branches of different types do, is refused, and"
        " so is an extension's constructor that is given a text that depends on the request."
    ),
    "Policies in observe mode decide nothing, and are left out.",
    "A proof is as good as the encoding, the solver and Cedar itself; the encoding is held against Cedar's own tests.",
)
