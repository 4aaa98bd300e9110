"""What is true: the tenant's rows, read at one facts version, as the entities that policies speak of.

Rules kept here:

- A `View` is one consistent state of one tenant: its rows (`rows`), and what follows from them.
- Restrictions are inherited along lineage: a run and a model version bear those of every dataset behind them, and a
  hold on any of these is a hold on them.
- A check counts only for the digest of the files that the version has now, and an approval stands beside the binding
  it was given for; whether the two agree is for policy to say.
- Nothing that a caller asserts gets in here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlmodel import col, select

from licet_attestations import canonical
from licet_engine.domain.binding import binding_parts
from licet_engine.domain.refs import ELSEWHERE_TENANT, Ref
from licet_engine.domain.restrictions import Restrictions, inherit
from licet_engine.lifecycle.rows import Rows
from licet_engine.store.tables import (
    Approval,
    Dataset,
    Endpoint,
    ModelVersion,
    PolicyBundle,
    Principal,
    Run,
)

Entity = dict[str, Any]
"""A Cedar entity in JSON: uid, attrs, parents."""

BUNDLE_PREFIX_CHARS = 16
"""How much of a bundle's digest names it in a reference."""
MAX_DERIVED = 500
"""Runs, and versions, that a certificate of deletion names; of more it says how many."""

TRAINING_BUDGET = "training"
"""Name of the tenant's budget for training, in the unit of `Run.cost`."""

EVIDENCE = "Evidence"
EVIDENCE_NAME = "evidence"
"""Type and name of a tenant's evidence, as a hold on it names them."""


def uid(kind: str, identifier: str) -> dict[str, str]:
    """A Cedar entity reference in JSON."""
    return {"type": kind, "id": identifier}


def entity_ref(kind: str, identifier: str) -> dict[str, Any]:
    """A Cedar entity reference as the value of an attribute."""
    return {"__entity": uid(kind, identifier)}


def entity(kind: str, identifier: str, attrs: dict[str, Any], parents: Iterable[dict[str, str]] = ()) -> Entity:
    """A Cedar entity in JSON."""
    return {"uid": uid(kind, identifier), "attrs": attrs, "parents": list(parents)}


def principal_type(kind: str) -> str:
    """The Cedar type of a principal of ``kind`` (``person`` or ``service``)."""
    return "Person" if kind == "person" else "ServiceAccount"


def tenant_entity(tenant: str, *, region: str, suspended: bool) -> Entity:
    """A tenant as policies see it."""
    return entity("Tenant", tenant, {"region": region, "suspended": suspended})


def elsewhere_entities(sent: str) -> list[Entity]:
    """The one stand-in for what is unknown or foreign; only what the asker sent tells two of them apart."""
    return [
        entity("Elsewhere", sent, {"tenant": entity_ref("Tenant", ELSEWHERE_TENANT)}),
        tenant_entity(ELSEWHERE_TENANT, region="", suspended=False),
    ]


class View(Rows):
    """One consistent state of one tenant: its rows, and the entities that they are."""

    # --- restrictions ----------------------------------------------------------------------------------------------

    def dataset_restrictions(self, row: Dataset) -> Restrictions:
        """What binds a dataset."""
        return Restrictions(
            classification=row.classification,
            protected=bool(row.protected),
            residency=frozenset(row.residency),
            uses=frozenset(row.uses),
            expires_at_ms=row.expires_at_ms,
            held=bool(self.holds("Dataset", row.name)),
        )

    def lineage_restrictions(self, datasets: Iterable[str], *, held: bool = False) -> Restrictions:
        """What binds something made from these datasets."""
        rows = [row for row in (self.dataset(name) for name in datasets) if row is not None]
        return inherit((self.dataset_restrictions(row) for row in rows), held=held)

    def derived_count(self, dataset: str) -> int:
        """How many runs at work and live model versions stand on a dataset."""
        runs = self._session.exec(select(Run).where(col(Run.state).in_(["accepted", "running"])))
        versions = self._session.exec(select(ModelVersion).where(col(ModelVersion.state).in_(["ready", "registering"])))
        return sum(dataset in row.datasets for row in runs) + sum(dataset in row.datasets for row in versions)

    def derived(self, dataset: str) -> dict[str, Any]:
        """What was ever made from a dataset, by names within the tenant, the oldest first: runs, versions, and which of these are held."""
        runs = self._session.exec(select(Run).order_by(col(Run.created_at_ms), col(Run.name))).all()
        versions = self._session.exec(
            select(ModelVersion).order_by(col(ModelVersion.created_at_ms), col(ModelVersion.version))
        ).all()
        of_runs = [row.name for row in runs if dataset in row.datasets]
        of_versions = [f"{row.model}@{row.version}" for row in versions if dataset in row.datasets]
        held = [name for name in of_versions[:MAX_DERIVED] if self.holds("ModelVersion", name)]
        more = max(0, len(of_runs) - MAX_DERIVED) + max(0, len(of_versions) - MAX_DERIVED)
        return {"runs": of_runs[:MAX_DERIVED], "versions": of_versions[:MAX_DERIVED], "held": held, "more": more}

    # --- entities --------------------------------------------------------------------------------------------------

    def _owned(self) -> dict[str, Any]:
        return {"tenant": entity_ref("Tenant", self.tenant.tenant_id)}

    def _id(self, name: str) -> str:
        return f"{self.tenant.tenant_id}/{name}"

    def _people(self, names: Iterable[str], kind: str) -> list[dict[str, Any]]:
        return [entity_ref(kind, self._id(name)) for name in sorted(names)]

    def tenant_entity(self) -> Entity:
        """The tenant itself."""
        return tenant_entity(self.tenant.tenant_id, region=self.tenant.region, suspended=self.tenant.suspended)

    def principal_entity(self, row: Principal) -> Entity:
        """A person or service account, with its roles as parents."""
        parents = [uid("Role", role) for role in sorted(row.roles)]
        attrs = self._owned() | {"active": row.active}
        if row.kind == "person" and row.qualified:
            attrs["qualified"] = sorted(row.qualified)
        return entity(principal_type(row.kind), self._id(row.name), attrs, parents)

    def dataset_entity(self, row: Dataset) -> Entity:
        """A dataset."""
        restrictions = self.dataset_restrictions(row)
        attrs = self._owned() | {
            "restrictions": restrictions.to_fact(),
            "held": restrictions.held,
            "archived": row.state in {"archived", "deleted"},
            "derived": self.derived_count(row.name),
        }
        return entity("Dataset", self._id(row.name), attrs)

    def run_entity(self, row: Run, *, is_paid: bool = False) -> Entity:
        """A run, or one as it would be.

        Args:
            row: The run.
            is_paid: Whether its cost was taken from the budget already, and so is there for it.
        """
        place = self.environment(row.environment)
        code, runtime = row.spec.get("code_digest_hex", ""), row.spec.get("runtime_digest_hex", "")
        attrs = self._owned() | {
            "restrictions": self.lineage_restrictions(row.datasets).to_fact(),
            "use": row.use,
            "environment": row.environment,
            "region": row.region,
            "runtime_approved": place is not None and runtime in place.runtimes_allowed,
            "code_approved": place is not None and code in place.code_allowed,
            "cost": row.cost,
            "budget_remaining": self.budget_remaining(TRAINING_BUDGET) + (row.cost if is_paid else 0),
            "authors": self._people(row.authors, "Person"),
            "pipelines": self._people(row.pipelines, "ServiceAccount"),
            "state": row.state,
        }
        return entity("Run", self._id(row.name), attrs | self._compute(row))

    def _compute(self, row: Run) -> dict[str, Any]:
        """What a run takes beyond one process in float32; nothing for one that takes no more."""
        spec = row.spec.get("spec", {})
        device, ranks, precision = spec.get("device", "cpu"), spec.get("ranks", 1), spec.get("precision", "fp32")
        if (device, ranks, precision) == ("cpu", 1, "fp32"):
            return {}
        allotment = self.device_allotment()
        return {
            "compute": {
                "device": device,
                "devices": 0 if device == "cpu" else ranks,
                "device_quota": 0 if allotment is None else allotment.devices,
                "ranks": ranks,
                "precision": precision,
            }
        }

    def binding(self, row: ModelVersion) -> str:
        """What an approval of the version, as it stands now, binds to."""
        return canonical.digest(self.binding_parts(row)).hex()

    def binding_parts(self, row: ModelVersion) -> dict[str, Any]:
        """What that binding is made of."""
        datasets = [found.digest_hex for found in map(self.dataset, row.datasets) if found is not None]
        return binding_parts(
            model_digest_hex=row.digest_hex,
            revision=row.revision,
            dataset_digests_hex=datasets,
            evaluation_digests_hex={k: c.attestation_digest_hex for k, c in self.checks(row).items()},
            policy_digest_hex=self.policy_digest_hex,
            restrictions=self.lineage_restrictions(row.datasets).to_fact() | {"held": False},
            tier=row.tier,
        )

    def _approvals_by_track(self, row: ModelVersion, binding: str) -> dict[str, dict[str, Any]]:
        """For each track the approval that lasts longest, of the present binding if there is one.

        That it has expired is left for policy to say, so that a question remembered for a while grows no older answer.
        """
        tracks: dict[str, list[Approval]] = {}
        for approval in self.approvals(row.model, row.version):
            tracks.setdefault(approval.track, []).append(approval)
        found = {}
        for track, given in sorted(tracks.items()):
            current = [a for a in given if a.binding == binding]
            last = max(current or given, key=lambda a: a.expires_at_ms)
            people = {name for a in current or [last] for name in (a.approver, a.on_behalf_of) if name is not None}
            found[track] = {
                "binding": last.binding,
                "by": self._people(people, "Person"),
                "expires_at_ms": last.expires_at_ms,
            }
        return found

    def model_version_entity(self, row: ModelVersion) -> Entity:
        """A model version, or one as it would be."""
        held = bool(self.holds("ModelVersion", f"{row.model}@{row.version}"))
        checks = {kind: {"passed": check.passed, **check.figures} for kind, check in self.checks(row).items()}
        binding = self.binding(row)
        attrs = self._owned() | {
            "model": entity_ref("Model", self._id(row.model)),
            "tier": row.tier,
            "restrictions": self.lineage_restrictions(row.datasets, held=held).to_fact(),
            "use": row.use,
            "stage": row.stage,
            "held": held,
            "authors": self._people(row.authors, "Person"),
            "pipelines": self._people(row.pipelines, "ServiceAccount"),
            "binding": binding,
            "approvals": self._approvals_by_track(row, binding),
            "signed": row.signed,
            "checks": checks,
        }
        return entity("ModelVersion", f"{self._id(row.model)}@{row.version}", attrs)

    def endpoint_entity(self, row: Endpoint, *more: ModelVersion) -> Entity:
        """An endpoint, or one as it would be with further versions on it; what binds any of its versions binds it."""
        numbers = {int(number) for number, percent in row.weights.items() if percent}
        numbers |= {int(row.shadow)} if row.shadow else set()
        if not numbers and not more:
            # What answers nothing now is still bound by whatever answered there.
            numbers = {deployment.version for deployment in self.deployments(row.name)}
        on_it = [found for n in sorted(numbers) if (found := self.model_version(row.model, n)) is not None]
        held = any(self.holds("ModelVersion", f"{version.model}@{version.version}") for version in on_it)
        datasets = {name for version in (*on_it, *more) for name in version.datasets}
        attrs = self._owned() | {
            "restrictions": self.lineage_restrictions(sorted(datasets), held=held).to_fact(),
            "use": more[-1].use if more else row.use,
            "region": row.region,
            "alarmed": row.alarmed,
            "live": row.state == "live",
            "held": held,
        }
        return entity("Endpoint", self._id(row.name), attrs)

    def bundle_entity(self, row: PolicyBundle) -> Entity:
        """A policy bundle."""
        attrs = self._owned() | {
            "author": entity_ref("Person", self._id(row.author)),
            "state": row.state,
            "proved": row.proved,
        }
        return entity("PolicyBundle", self._id(row.digest_hex[:BUNDLE_PREFIX_CHARS]), attrs)

    def key_entity(self) -> Entity:
        """The tenant's key."""
        return entity("TenantKey", self._id("key"), self._owned() | {"held": self.any_hold()})

    def evidence_entity(self) -> Entity:
        """The tenant's log, and what it names, as evidence."""
        held = bool(self.holds(EVIDENCE, EVIDENCE_NAME))
        return entity(EVIDENCE, self._id(EVIDENCE_NAME), self._owned() | {"held": held})

    def plain_entity(self, kind: str, ref: Ref) -> Entity:
        """A resource of which policies know only the tenant: ChangeTicket, Issuer, Log, Secret, Webhook."""
        return entity(kind, str(ref), self._owned())
