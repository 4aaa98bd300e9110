"""The verbs of the client, by noun. Each asks for one action of the schema and gives back the answer.

Rules kept here:

- A method is one action: it names its parameters and sends them; what they may be, the server says.
- ``claimed`` and ``idempotency_key`` are the last arguments of every verb that may change something; see ``LicetClient.act``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from licet_engine.client_values import Answer, Enforced, Explanation, LogHead, ServerFault, Upload

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from licet_engine.client import LicetClient


class Sent(TypedDict, total=False):
    """What every verb takes beside its own parameters.

    Attributes:
        claimed: What the asker claims; it feeds no guardrail.
        idempotency_key: Of an earlier call without an answer.
    """

    claimed: Mapping[str, str] | None
    idempotency_key: str | None


class Verbs:
    """Verbs of one noun."""

    def __init__(self, client: LicetClient) -> None:
        self._client = client

    def _act(self, action: str, resource: str, sent: Sent, **parameters: Any) -> Answer:
        given = {name: value for name, value in parameters.items() if value is not None}
        return self._client.act(
            action,
            resource,
            given,
            claimed=sent.get("claimed"),
            idempotency_key=sent.get("idempotency_key"),
        )


class DatasetVerbs(Verbs):
    """Datasets."""

    def register(
        self,
        ref: str,
        file: Path | Upload,
        *,
        classification: str,
        residency: Sequence[str],
        uses: Sequence[str],
        expires_at_ms: int,
        label: str,
        protected: Sequence[str] = (),
        missing: str | None = None,
        columns: Mapping[str, str] | None = None,
        purpose: str | None = None,
        **sent: Unpack[Sent],
    ) -> Answer:
        """Upload a CSV file, unless it is uploaded already, and register it as a dataset.

        ``missing`` is ``refuse`` or ``drop``; ``columns`` says which are ``number`` and which ``yes-no``.
        """
        upload = file if isinstance(file, Upload) else self._client.upload(file)
        return self._act(
            "dataset.register",
            ref,
            sent,
            **upload.to_parameters(),
            classification=classification,
            protected=list(protected),
            residency=list(residency),
            uses=list(uses),
            expires_at_ms=expires_at_ms,
            label=label,
            missing=missing,
            columns=None if columns is None else dict(columns),
            purpose=purpose,
        )

    def read(self, ref: str, **sent: Unpack[Sent]) -> Answer:
        """Have the rows decrypted; fetch them as the operation's artifact."""
        return self._act("dataset.read", ref, sent)

    def classify(
        self,
        ref: str,
        *,
        classification: str | None = None,
        residency: Sequence[str] | None = None,
        uses: Sequence[str] | None = None,
        expires_at_ms: int | None = None,
        **sent: Unpack[Sent],
    ) -> Answer:
        """Change what binds a dataset; what is left out stays as it is."""
        return self._act(
            "dataset.classify",
            ref,
            sent,
            classification=classification,
            residency=None if residency is None else list(residency),
            uses=None if uses is None else list(uses),
            expires_at_ms=expires_at_ms,
        )

    def hold(self, ref: str, reason: str, **sent: Unpack[Sent]) -> Answer:
        """Place a hold."""
        return self._act("dataset.hold", ref, sent, reason=reason)

    def lift_hold(self, ref: str, reason: str, **sent: Unpack[Sent]) -> Answer:
        """Lift every hold on it."""
        return self._act("dataset.lift-hold", ref, sent, reason=reason)

    def archive(self, ref: str, **sent: Unpack[Sent]) -> Answer:
        """Close it for new runs."""
        return self._act("dataset.archive", ref, sent)

    def delete(self, ref: str, **sent: Unpack[Sent]) -> Answer:
        """Destroy its rows."""
        return self._act("dataset.delete", ref, sent)


class TrainingVerbs(Verbs):
    """Training."""

    def launch(
        self,
        ref: str,
        *,
        dataset: str,
        environment: str,
        use: str,
        spec: Mapping[str, Any] | None = None,
        cost: int | None = None,
        devices: int | None = None,
        ranks: int | None = None,
        **sent: Unpack[Sent],
    ) -> Answer:
        """Train a model on a dataset, as the run ``ref``."""
        return self._act(
            "training.launch",
            ref,
            sent,
            dataset=dataset,
            environment=environment,
            use=use,
            spec=None if spec is None else dict(spec),
            cost=cost,
            devices=devices,
            ranks=ranks,
        )

    def cancel(self, ref: str, **sent: Unpack[Sent]) -> Answer:
        """Stop a run."""
        return self._act("training.cancel", ref, sent)


class RunVerbs(Verbs):
    """Runs."""

    def log(self, ref: str, name: str, step: int, value: str, **sent: Unpack[Sent]) -> Answer:
        """Report a figure to a run; ``value`` is a decimal number as text."""
        return self._act("run.log", ref, sent, name=name, step=step, value=value)

    def read(self, ref: str, **sent: Unpack[Sent]) -> Answer:
        """What is known of a run, as the answer's ``result["run"]``."""
        return self._act("run.read", ref, sent)


class ModelVerbs(Verbs):
    """Model versions."""

    def register(
        self,
        ref: str,
        *,
        run: str,
        tier: str | None = None,
        files: Mapping[str, Path | Upload] | None = None,
        **sent: Unpack[Sent],
    ) -> Answer:
        """Register a run's model as the next version of ``ref``, or replace files of the version it names."""
        uploads = {
            name: file if isinstance(file, Upload) else self._client.upload(file)
            for name, file in (files or {}).items()
        }
        return self._act(
            "model.register",
            ref,
            sent,
            run=run,
            tier=tier,
            files={name: upload.to_parameters() for name, upload in uploads.items()} or None,
        )

    def read(self, ref: str, **sent: Unpack[Sent]) -> Answer:
        """What is known of a version, as the answer's ``result["version"]``."""
        return self._act("model.read", ref, sent)

    def download(self, ref: str, **sent: Unpack[Sent]) -> Answer:
        """Have its files decrypted; fetch them as the operation's artifact."""
        return self._act("model.download", ref, sent)

    def check(self, ref: str, *, kinds: Sequence[str] | None = None, **sent: Unpack[Sent]) -> Answer:
        """Check it on held-out data; every kind of check by default."""
        return self._act("model.check", ref, sent, kinds=list(kinds) if kinds else None)

    def request(self, ref: str, track: str, *, reason: str | None = None, **sent: Unpack[Sent]) -> Answer:
        """Ask a track for its approval."""
        return self._act("model.request", ref, sent, track=track, reason=reason)

    def approve(
        self,
        ref: str,
        track: str,
        *,
        verdict: str = "approved",
        reason: str | None = None,
        binding: str | None = None,
        on_behalf_of: str | None = None,
        **sent: Unpack[Sent],
    ) -> Answer:
        """Approve it for a track, or reject it (``verdict="rejected"``); in a reviewer's place, if one delegated it."""
        return self._act(
            "model.approve",
            ref,
            sent,
            track=track,
            verdict=verdict,
            reason=reason,
            binding=binding,
            on_behalf_of=on_behalf_of,
        )

    def withdraw_request(self, ref: str, track: str, *, reason: str | None = None, **sent: Unpack[Sent]) -> Answer:
        """Withdraw one's own request for an approval."""
        return self._act("model.withdraw-request", ref, sent, track=track, reason=reason)

    def withdraw_approval(self, ref: str, track: str, *, reason: str | None = None, **sent: Unpack[Sent]) -> Answer:
        """Withdraw an approval that one gave."""
        return self._act("model.withdraw-approval", ref, sent, track=track, reason=reason)

    def promote(
        self,
        ref: str,
        *,
        stage: str = "prod",
        region: str | None = None,
        reason: str | None = None,
        ticket: str | None = None,
        **sent: Unpack[Sent],
    ) -> Answer:
        """Promote it to ``staging`` or ``prod``, under a change ticket that was fetched."""
        return self._act("model.promote", ref, sent, stage=stage, region=region, reason=reason, ticket=ticket)

    def roll_back(self, ref: str, *, stage: str = "prod", reason: str | None = None, **sent: Unpack[Sent]) -> Answer:
        """Return the stage that it holds to the version before."""
        return self._act("model.roll-back", ref, sent, stage=stage, reason=reason)

    def retire(self, ref: str, **sent: Unpack[Sent]) -> Answer:
        """Take it off every stage for good."""
        return self._act("model.retire", ref, sent)

    def hold(self, ref: str, reason: str, **sent: Unpack[Sent]) -> Answer:
        """Place a hold."""
        return self._act("model.hold", ref, sent, reason=reason)

    def lift_hold(self, ref: str, reason: str, **sent: Unpack[Sent]) -> Answer:
        """Lift every hold on it."""
        return self._act("model.lift-hold", ref, sent, reason=reason)

    def delete(self, ref: str, **sent: Unpack[Sent]) -> Answer:
        """Destroy its files."""
        return self._act("model.delete", ref, sent)


class ApprovalVerbs(Verbs):
    """Delegation of tracks. Approvals themselves are given on models."""

    def delegate(
        self, ref: str, track: str, *, until_ms: int, reason: str | None = None, **sent: Unpack[Sent]
    ) -> Answer:
        """Have a person stand in for oneself on a track until a time."""
        return self._act("approval.delegate", ref, sent, track=track, until_ms=until_ms, reason=reason)

    def revoke_delegation(self, ref: str, track: str, *, reviewer: str | None = None, **sent: Unpack[Sent]) -> Answer:
        """Revoke a delegation to a person: one's own, or a reviewer's."""
        return self._act("approval.revoke-delegation", ref, sent, track=track, reviewer=reviewer)


class TicketVerbs(Verbs):
    """Change tickets."""

    def fetch(self, tenant: str, ticket: str, **sent: Unpack[Sent]) -> Answer:
        """Have a ticket fetched, so that a promotion can name it."""
        return self._act("ticket.fetch", tenant, sent, ticket=ticket)


class IssuerVerbs(Verbs):
    """Issuers of ID tokens that a tenant trusts."""

    def trust(
        self,
        ref: str,
        url: str,
        *,
        account: str,
        claims: Mapping[str, str],
        audience: str | None = None,
        keys: Mapping[str, Any] | None = None,
        unsafe_http: bool | None = None,
        **sent: Unpack[Sent],
    ) -> Answer:
        """Trust an issuer: its ID tokens with these claims stand for the service account."""
        return self._act(
            "issuer.trust",
            ref,
            sent,
            url=url,
            account=account,
            claims=dict(claims),
            audience=audience,
            keys=None if keys is None else dict(keys),
            unsafe_http=unsafe_http,
        )

    def remove(self, ref: str, **sent: Unpack[Sent]) -> Answer:
        """Trust it no more; what its ID tokens were exchanged for is revoked."""
        return self._act("issuer.remove", ref, sent)

    def read(self, tenant: str, **sent: Unpack[Sent]) -> Answer:
        """Ask whether issuers may be read; they are read as the list ``issuers``."""
        return self._act("issuer.read", tenant, sent)


class WebhookVerbs(Verbs):
    """Webhooks."""

    def create(
        self,
        ref: str,
        url: str,
        *,
        events: Sequence[str] | None = None,
        unsafe_http: bool | None = None,
        **sent: Unpack[Sent],
    ) -> Answer:
        """Create one; ``result["secret"]`` is shown this once."""
        return self._act(
            "webhook.create",
            ref,
            sent,
            url=url,
            events=None if events is None else list(events),
            unsafe_http=unsafe_http,
        )

    def delete(self, ref: str, **sent: Unpack[Sent]) -> Answer:
        """Delete one: it is told nothing more."""
        return self._act("webhook.delete", ref, sent)

    def rotate(self, ref: str, *, overlap_s: int | None = None, **sent: Unpack[Sent]) -> Answer:
        """Give it a new secret; ``result["secret"]`` is shown this once. The one before counts for a while."""
        return self._act("webhook.rotate", ref, sent, overlap_s=overlap_s)

    def redeliver(self, ref: str, message: str, **sent: Unpack[Sent]) -> Answer:
        """Send a message that ended again."""
        return self._act("webhook.redeliver", ref, sent, message=message)

    def test(self, ref: str, **sent: Unpack[Sent]) -> Answer:
        """Send it a message that means nothing."""
        return self._act("webhook.test", ref, sent)

    def read(self, tenant: str, **sent: Unpack[Sent]) -> Answer:
        """Ask whether webhooks may be read; they are read as the lists ``webhooks`` and ``messages``."""
        return self._act("webhook.read", tenant, sent)


class TenantVerbs(Verbs):
    """Tenants."""

    def create(
        self,
        tenant: str,
        *,
        region: str,
        administrator: str | None = None,
        packs: Sequence[Mapping[str, Any]] | None = None,
        token_ttl_s: int | None = None,
        **sent: Unpack[Sent],
    ) -> Answer:
        """Create a tenant; ``result["token"]`` is its first administrator's, shown this once."""
        return self._act(
            "tenant.create",
            tenant,
            sent,
            region=region,
            administrator=administrator,
            packs=None if packs is None else [dict(pack) for pack in packs],
            token_ttl_s=token_ttl_s,
        )

    def administer(
        self,
        tenant: str,
        *,
        environments: Sequence[Mapping[str, Any]] | None = None,
        budgets: Mapping[str, int] | None = None,
        approval_ttl_s: int | None = None,
        request_ttl_s: int | None = None,
        remind_before_s: int | None = None,
        evidence_retention_days: int | None = None,
        **sent: Unpack[Sent],
    ) -> Answer:
        """Declare environments, set budgets, and say how long approvals and requests last and evidence is kept."""
        return self._act(
            "tenant.administer",
            tenant,
            sent,
            environments=None if environments is None else [dict(place) for place in environments],
            budgets=None if budgets is None else dict(budgets),
            approval_ttl_s=approval_ttl_s,
            request_ttl_s=request_ttl_s,
            remind_before_s=remind_before_s,
            evidence_retention_days=evidence_retention_days,
        )

    def suspend(
        self, tenant: str, *, suspended: bool = True, reason: str | None = None, **sent: Unpack[Sent]
    ) -> Answer:
        """Suspend a tenant, or end its suspension."""
        return self._act("tenant.suspend", tenant, sent, suspended=suspended, reason=reason)

    def allot(self, tenant: str, *, devices: int, **sent: Unpack[Sent]) -> Answer:
        """Say, as an operator, how many devices of the pool a tenant may have at once."""
        return self._act("tenant.allot", tenant, sent, devices=devices)

    def request_break_glass(
        self, tenant: str, reason: str, *, duration_s: int | None = None, **sent: Unpack[Sent]
    ) -> Answer:
        """Ask, as an operator, to look; ``result["break_glass"]`` is its ID."""
        return self._act("tenant.request-break-glass", tenant, sent, reason=reason, duration_s=duration_s)

    def approve_break_glass(self, tenant: str, identifier: str, **sent: Unpack[Sent]) -> Answer:
        """Let the operator who asked look."""
        return self._act("tenant.approve-break-glass", tenant, sent, id=identifier)

    def break_glass(
        self, tenant: str, identifier: str, what: str, *, limit: int | None = None, **sent: Unpack[Sent]
    ) -> Answer:
        """Look at ``decisions``, ``operations`` or the ``log``; ``result["items"]`` is what is there."""
        return self._act("tenant.break-glass", tenant, sent, id=identifier, what=what, limit=limit)

    def end_break_glass(self, tenant: str, identifier: str, **sent: Unpack[Sent]) -> Answer:
        """End it before its time."""
        return self._act("tenant.end-break-glass", tenant, sent, id=identifier)

    def review_break_glass(self, tenant: str, identifier: str, finding: str, **sent: Unpack[Sent]) -> Answer:
        """Say what the review found."""
        return self._act("tenant.review-break-glass", tenant, sent, id=identifier, finding=finding)


class PersonVerbs(Verbs):
    """People and service accounts."""

    def administer(
        self,
        ref: str,
        *,
        kind: str = "person",
        roles: Sequence[str] = (),
        active: bool = True,
        owner: str | None = None,
        qualified: Sequence[str] = (),
        **sent: Unpack[Sent],
    ) -> Answer:
        """Set a person or service account to be exactly this; ``qualified`` are tracks on which to stand in for reviewers."""
        return self._act(
            "person.administer",
            ref,
            sent,
            kind=kind,
            roles=list(roles),
            active=active,
            owner=owner,
            qualified=list(qualified) or None,
        )


class TokenVerbs(Verbs):
    """API tokens."""

    def issue(self, ref: str, *, label: str | None = None, ttl_s: int | None = None, **sent: Unpack[Sent]) -> Answer:
        """Issue a token to a person or service account; ``result["token"]`` is shown this once."""
        return self._act("token.issue", ref, sent, label=label, ttl_s=ttl_s)

    def revoke(self, ref: str, token_id: str | None = None, *, every: bool = False, **sent: Unpack[Sent]) -> Answer:
        """Revoke a token of a person or service account, or every one of them."""
        return self._act("token.revoke", ref, sent, token_id=token_id, every=every or None)

    def list(self, tenant: str, **sent: Unpack[Sent]) -> Answer:
        """Ask whether all tokens of the tenant may be listed; ``LicetClient.list(tenant, "tokens")`` lists them."""
        return self._act("token.list", tenant, sent)


class PolicyVerbs(Verbs):
    """Policy bundles."""

    def publish(
        self,
        tenant: str,
        *,
        project: Mapping[str, Any] | None = None,
        packs: Sequence[Mapping[str, Any]] = (),
        policies: str = "",
        **sent: Unpack[Sent],
    ) -> Answer:
        """Send a policy project, or packs and own policies alone, to be examined and published.

        The operation ends as ``done`` with ``result["ref"]``, which names the bundle for somebody else to activate, or as
        ``refused`` with ``result["findings"]``.
        """
        if project is not None:
            return self._act("policy.publish", tenant, sent, project=dict(project))
        return self._act("policy.publish", tenant, sent, packs=[dict(pack) for pack in packs], policies=policies)

    def activate(self, ref: str, **sent: Unpack[Sent]) -> Answer:
        """Bring a published bundle into force."""
        return self._act("policy.activate", ref, sent)

    def roll_back(self, tenant: str, **sent: Unpack[Sent]) -> Answer:
        """Bring back the bundle that was in force right before the present one; ``result["ref"]`` names it."""
        return self._act("policy.roll-back", tenant, sent)

    def shadow(self, tenant: str, bundle: str | None = None, *, off: bool = False, **sent: Unpack[Sent]) -> Answer:
        """Have a published bundle run beside the policies in force, named by its digest; or ``off``, none any more."""
        return self._act("policy.shadow", tenant, sent, bundle=bundle, off=off or None)

    def flips(self, tenant: str, *, limit: int = 50) -> dict[str, Any]:
        """Where the candidate beside the policies in force would have answered otherwise."""
        return self._client.get_json("/v1/flips", tenant, params={"limit": limit})

    def read(self, ref: str, *, body: bool = False, project: bool = False, **sent: Unpack[Sent]) -> Answer:
        """What a bundle is and what was found when it was published; with ``body`` itself, with ``project`` what was sent."""
        return self._act("policy.read", ref, sent, body=body or None, project=project or None)


class EvidenceVerbs(Verbs):
    """Evidence."""

    def export(
        self, tenant: str, *, from_ms: int | None = None, to_ms: int | None = None, **sent: Unpack[Sent]
    ) -> Answer:
        """Export the tenant's evidence, all or of a time; fetch the archive as the operation's artifact."""
        return self._act("evidence.export", tenant, sent, from_ms=from_ms, to_ms=to_ms)

    def hold(self, tenant: str, reason: str, **sent: Unpack[Sent]) -> Answer:
        """Place a hold: no record of the tenant's log is erased."""
        return self._act("evidence.hold", tenant, sent, reason=reason)

    def lift_hold(self, tenant: str, reason: str, **sent: Unpack[Sent]) -> Answer:
        """Lift every hold on the tenant's evidence."""
        return self._act("evidence.lift-hold", tenant, sent, reason=reason)

    def isolation(self, actor: str, owner: str) -> dict[str, Any]:
        """Whether a tenant ever stood in the owner's log: the signed ``statement``, and its ``predicate`` read."""
        return self._client.get_json("/v1/isolation", owner, actor)


class AttestationVerbs(Verbs):
    """Attestations: what they are is read, some are made on demand. Each is as it was signed, with the log entry that names it."""

    def newest(self, tenant: str, *, kind: str = "", about: str = "", limit: int = 50) -> list[dict[str, Any]]:
        """The newest, of one kind or about one thing; warrants only if they are asked for."""
        params = {"kind": kind, "about": about, "limit": limit}
        found: list[dict[str, Any]] = self._client.get_json("/v1/attestations", tenant, params=params)["items"]
        return found

    def read(self, tenant: str, digest_hex: str) -> dict[str, Any]:
        """One, by the digest under which the log names it."""
        return self._client.get_json("/v1/attestations", tenant, digest_hex)

    def decision(self, tenant: str, decision_id: str) -> dict[str, Any]:
        """The statement of a decision, made now if there is none yet."""
        return self._client.get_json("/v1/attestations", tenant, "decision", decision_id)

    def policy(self, tenant: str, bundle: str) -> dict[str, Any]:
        """The statement that a bundle came into force, made now if there is none yet; named by its digest or the beginning of it."""
        return self._client.get_json("/v1/attestations", tenant, "policy", bundle)

    def entry(self, tenant: str, index: int) -> dict[str, Any]:
        """The statement of an entry of the log, made now if there is none yet."""
        return self._client.get_json("/v1/attestations", tenant, "entry", str(index))


class KeyVerbs(Verbs):
    """Tenant keys."""

    def destroy(self, tenant: str, reason: str, **sent: Unpack[Sent]) -> Answer:
        """Destroy the tenant's key: everything stored under it becomes unreadable for good."""
        return self._act("key.destroy", tenant, sent, reason=reason)


class DecisionVerbs(Verbs):
    """Decisions."""

    def read(self, tenant: str, decision_id: str) -> dict[str, Any]:
        """A decision's record, and where it stands in the log."""
        return self._client.get_json("/v1/decisions", tenant, decision_id)

    def explain(self, tenant: str, decision_id: str) -> Explanation:
        """Why a decision fell as it did, the path to yes, and what would be decided now."""
        body = self._client.get_json("/v1/decisions", tenant, decision_id, "explain")
        return Explanation(
            decision=body.get("record") or {},
            explanation=body.get("explanation") or {},
            path=body.get("path") or {},
            now=body.get("now") or {},
        )

    def enforced(self, tenant: str, *, from_ms: int = 0, to_ms: int | None = None) -> Iterator[Enforced]:
        """How often which policies determined a decision, part by part, the newest first.

        Each part is a question of its own to the server.

        Raises:
            ServerFault: The parts would never end.
        """
        params: dict[str, Any] = {"from_ms": from_ms} | ({} if to_ms is None else {"to_ms": to_ms})
        while True:
            part = self._client.enforced(tenant, params)
            yield part
            if part.next is None:
                return
            if part.next >= params.get("before", part.next + 1):
                raise ServerFault("the server goes on where it was already: what was counted is not all")
            params["before"] = part.next


class RecordVerbs(Verbs):
    """Verbs on records of the log."""

    def erase(self, tenant: str, entries: Sequence[int], reason: str, **sent: Unpack[Sent]) -> Answer:
        """Erase the records of entries, 100 at once at most; the entries themselves stay. ``reason`` stays in the log."""
        return self._act("record.erase", tenant, sent, entries=list(entries), reason=reason)


class LogVerbs(Verbs):
    """Logs."""

    def read(self, tenant: str) -> LogHead:
        """The head of the tenant's log, with a signed checkpoint."""
        body = self._client.get_json("/v1/log", tenant)
        return LogHead(
            origin=str(body.get("origin", "")),
            size=int(body.get("size", 0)),
            root_hex=str(body.get("root_hex", "")),
            checkpoint=str(body.get("checkpoint") or ""),
        )

    def file(self, tenant: str, path: str) -> bytes:
        """A file of the log in C2SP tlog-tiles form, such as ``checkpoint`` or ``tile/0/000``; verify it."""
        return self._client.get_bytes("/v1/tlog", tenant, *path.split("/"))

    def entries(self, tenant: str, *, first: int = 0, count: int = 100) -> list[dict[str, Any]]:
        """Headers of entries: ``{"index", "leaf": {"time_ms", "kind", "actor", "owner", "commitment"}}`` each."""
        body = self._client.get_json("/v1/log", tenant, "entries", params={"first": first, "count": count})
        return [dict(entry) for entry in body.get("entries") or ()]
