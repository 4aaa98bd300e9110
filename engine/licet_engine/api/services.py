"""Everything that the routes use, constructed in ``app.py``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sqlalchemy import Engine

from licet_attestations.signer.client import SignerClient
from licet_attestations.trustroot import TrustRoot
from licet_engine.api.limits import Places
from licet_engine.canaries import Canaries
from licet_engine.evidence.attestations import Attestations
from licet_engine.evidence.isolation import PairAnswers
from licet_engine.lifecycle.asking import Desk
from licet_engine.lifecycle.exchange import Exchanger, IssuerKeys
from licet_engine.lifecycle.operations import Operations
from licet_engine.lifecycle.outbox import Outbox
from licet_engine.lifecycle.reminders import Reminders
from licet_engine.lifecycle.retention import Overwriting
from licet_engine.lifecycle.router_door import RouterDoor
from licet_engine.lifecycle.shadowing import Shadower
from licet_engine.lifecycle.spool import Spool
from licet_engine.lifecycle.tenants import Tenants
from licet_engine.log.directory import Directory
from licet_engine.log.notary import Notary
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.witnesses import Witnesses
from licet_engine.metrics import ApiMetrics
from licet_engine.settings import Settings
from licet_engine.unproved import Unproved


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts of the api."""

    settings: Settings
    engine: Engine
    sequencer: Sequencer
    tenants: Tenants
    desk: Desk
    operations: Operations
    router_door: RouterDoor
    notary: Notary
    witnesses: Witnesses
    directory: Directory
    pair_answers: PairAnswers
    attestations: Attestations
    signer: SignerClient
    trust_root: TrustRoot
    spool: Spool
    outbox: Outbox
    issuer_keys: IssuerKeys
    exchanger: Exchanger
    reminders: Reminders
    overwriting: Overwriting
    shadower: Shadower
    canaries: Canaries
    unproved: Unproved
    threads: ThreadPoolExecutor
    slow_threads: ThreadPoolExecutor
    metrics: ApiMetrics
    places: Places
