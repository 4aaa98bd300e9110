"""Decide: facts to entities to Cedar to a decision, and its explanation. No I/O.

The flow of a request reads in ``decision``; what it may rely on stands in ``bundle`` (policies in force) and ``entities``
(facts); what comes of it in ``record``, ``explain`` and ``path``.
"""

from licet_engine.decide.bundle import CompiledBundle, Policy
from licet_engine.decide.decision import Decision, Request, decide, decide_unsliced
from licet_engine.decide.entities import EntityUid, Fact, FactSet
from licet_engine.decide.errors import BundleError, DecideError, FactError, RecordError, ReplayMismatch
from licet_engine.decide.explain import Explanation, PolicyReport, explain, reports
from licet_engine.decide.path import Change, Obtainable, PathToYes, path_to_yes
from licet_engine.decide.record import ENGINE, Operation, build_record, parse_record, recorded_request, replay

__all__ = [
    "ENGINE",
    "BundleError",
    "Change",
    "CompiledBundle",
    "DecideError",
    "Decision",
    "EntityUid",
    "Explanation",
    "Fact",
    "FactError",
    "FactSet",
    "Obtainable",
    "Operation",
    "PathToYes",
    "Policy",
    "PolicyReport",
    "RecordError",
    "ReplayMismatch",
    "Request",
    "build_record",
    "decide",
    "decide_unsliced",
    "explain",
    "parse_record",
    "path_to_yes",
    "recorded_request",
    "replay",
    "reports",
]
