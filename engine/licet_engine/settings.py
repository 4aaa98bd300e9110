"""Every setting of an installation, with its default and unit. The environment is read here and nowhere else."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from licet_adapters.ports import CONTROL_SOCKET, DEVICE_UUID
from licet_attestations.warrant import MAX_DECISION_AGE_MS
from licet_engine.domain.errors import ConfigurationError

PREFIX = "LICET_"
USERS = ("auto", "on", "off")
_LONGEST_TRY_S = 20
"""A message is claimed for a minute; a look-up and a try, each as long, must be over by then."""
_SHORTEST_PROBING_S = 60
"""A run takes a few seconds, and leaves some hundred entries."""
ADDRESSING = ("auto", "path", "virtual")
MAX_SLOT = 64
"""More supervisors than that on one machine's data folder mean nothing."""


NEEDED_ADAPTERS = ("local-training", "local-checks", "local-serving")
"""Those that are wired by name: no setting chooses another in their place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one installation. Each is read from the environment variable ``LICET_<NAME IN CAPITALS>``.

    Attributes:
        data: Folder that holds everything; made by ``licet init``.
        host: Address on which the API listens.
        port: Port on which the API listens.
        public_url: Under which clients reach the API, such as https://licet.example, where a proxy stands before it; empty: host and port.
        max_body_bytes: Largest JSON body that is read.
        max_upload_bytes: Largest file that may be uploaded.
        max_uploads_per_principal: Uploads of one principal that may wait at once to be used.
        max_tenant_uploads_bytes: What the waiting uploads of all principals of a tenant may take together.
        upload_ttl_s: How long an unused upload or an artifact stays.
        examination_s: Longest examination of policies that are to be published; what takes longer is refused. Of those in force, four times that.
        examinations: How many examinations go on at once in one worker; each may take 2 GiB of memory, and a processor.
        decision_max_age_s: How old a decision may be when a warrant is asked for, before it is decided again.
        lease_s: How long long-running work goes on before it is decided again.
        checkpoint_interval_s: How often changed logs get a signed checkpoint.
        api_threads: Threads for requests that do more than decide.
        adapters: Names of the adapters that the worker may load, separated by commas.
        objects_adapter: The adapter that keeps datasets and what runs make.
        registry_adapter: The adapter that keeps model versions.
        s3_endpoint: URL of the S3 service; empty for AWS's own.
        s3_bucket: The bucket of the S3 adapters, made by the operator.
        s3_prefix: Goes before every key in the bucket.
        s3_region: Region of the bucket; empty for the standard AWS chain.
        s3_addressing: How the bucket is named in a request: ``path``, ``virtual`` or ``auto``.
        s3_ca_file: Certificates that the endpoint's must be signed by; empty for the usual ones.
        s3_credentials_file: File with the credentials, its owner's alone; empty for the standard AWS chain.
        s3_timeout_s: How long one request may wait for an answer.
        s3_retention_days: For how many days Object Lock keeps what is stored from removal; 0 for not at all.
        s3_upload_age_s: How old an unfinished upload is when it is ended.
        router_host: Address on which the router takes invocations.
        router_port: Port on which the router takes invocations.
        router_connections: Connections that the router takes at a time; no tenant has more than half.
        endpoints_per_tenant: Endpoints of one tenant that may have deployments at a time.
        replicas_per_tenant: Replicas that all deployed versions of one tenant may have together, each at its most.
        users: ``auto``: started as root, each process is a user of its own where that can be had; ``on``: or does not
            start; ``off``: all are the user who starts them.
        uid_base: First of the four numbers of users and groups that the processes are, started as root.
        webhook_tries: How often a message to a webhook is tried.
        webhook_first_pause_s: Pause after the first try; each further one is five times as long, up to six hours.
        webhook_history_s: How long messages that ended stay.
        outbound_timeout_s: How long one try of a webhook, or one look at the ticket system, may take.
        outbound_networks: Networks that are not public to which webhooks and tickets may reach, separated by commas.
        tickets: Which adapter fetches change tickets; empty for none.
        tickets_folder: Where ``file-tickets`` looks.
        tickets_url: Where ``http-tickets`` asks, with ``{tenant}`` and ``{ticket}`` in it.
        tickets_token_file: File with the token that ``http-tickets`` presents; empty for none.
        ticket_max_age_s: How long after its ``as_of`` a ticket may be relied on.
        key_passphrase_file: File with the passphrase of the signer's keys; empty for none.
        max_requests: Requests that the api works on at once.
        max_waiting_requests: Requests that wait for one of these places.
        rate_per_token: Requests a second that one token may send; twice as many at once after a pause.
        rate_per_tenant: Requests a second that all tokens of a tenant may send together.
        drain_s: How long a stop waits for requests in flight.
        min_free_bytes: Free space below which the service says that it is not ready.
        metrics_port: Port on 127.0.0.1 of the api's metrics, the worker's and the router's on the next two; 0 for none.
        otlp_endpoint: Base address of an OTLP/HTTP collector that gets traces; empty for none.
        idempotency_ttl_s: How long an answer is kept for the repetition of its request.
        telemetry_ttl_s: How long figures of runs, events of traffic, batches of invocations and flips of candidates are kept.
        failed_work_ttl_s: How long a work folder that was left behind is kept.
        workflow_ttl_s: How long the queue remembers what is done.
        warrant_mark_ttl_s: How long the mark of a spent warrant is kept after the warrant's end.
        checkpoint_ttl_s: How long every checkpoint is kept; of older ones, one a day.
        database_urls: Folder with the URLs of a PostgreSQL database, a file for each role; empty for SQLite in ``data``.
        slot: Number of this supervisor among those that serve one installation; above 1 only on PostgreSQL.
        devices: UUIDs of the devices of this machine that jobs may be given, separated by commas; empty for none.
        witness_policy: File with the witnesses to be asked, with their URLs, and the quorum (C2SP tlog-policy); empty for none.
        witness_max_lag_s: How old an entry of a log may be that no quorum has seen, before warrants and exports wait.
        witness_networks: Networks that are not public in which witnesses may be, separated by commas; plain http is for loopback in these.
        probe_every_s: How often the worker tries everything across two tenants of its own; 0 for never.
        prove_every_s: How often the worker looks for policies in force that nobody proved, such as those a tenant comes with; 0 for never.
        device_idle_s: After how long without a sign of life of its run a device's lease lapses.
    """

    data: Path = Path("data")
    host: str = "127.0.0.1"
    port: int = 8000
    public_url: str = ""
    max_body_bytes: int = 1 << 20
    max_upload_bytes: int = 256 << 20
    max_uploads_per_principal: int = 16
    max_tenant_uploads_bytes: int = 8 << 30
    upload_ttl_s: int = 3600
    examination_s: int = 120
    examinations: int = 2
    decision_max_age_s: int = 45
    lease_s: int = 30
    checkpoint_interval_s: float = 1.0
    api_threads: int = 16
    adapters: str = "local-objects,local-registry,local-training,local-checks,local-serving,standard-webhooks"
    objects_adapter: str = "local-objects"
    registry_adapter: str = "local-registry"
    s3_endpoint: str = ""
    s3_bucket: str = ""
    s3_prefix: str = ""
    s3_region: str = ""
    s3_addressing: str = "auto"
    s3_ca_file: str = ""
    s3_credentials_file: str = ""
    s3_timeout_s: float = 30.0
    s3_retention_days: int = 0
    s3_upload_age_s: int = 86_400
    router_host: str = "127.0.0.1"
    router_port: int = 8001
    router_connections: int = 2048
    endpoints_per_tenant: int = 50
    replicas_per_tenant: int = 64
    users: str = "auto"
    uid_base: int = 64_210
    webhook_tries: int = 8
    webhook_first_pause_s: float = 5.0
    webhook_history_s: int = 30 * 86_400
    outbound_timeout_s: float = 10.0
    outbound_networks: str = ""
    tickets: str = ""
    tickets_folder: str = ""
    tickets_url: str = ""
    tickets_token_file: str = ""
    ticket_max_age_s: int = 3600
    key_passphrase_file: str = ""
    max_requests: int = 256
    max_waiting_requests: int = 1024
    rate_per_token: int = 500
    rate_per_tenant: int = 1000
    drain_s: int = 10
    min_free_bytes: int = 200 << 20
    metrics_port: int = 0
    otlp_endpoint: str = ""
    idempotency_ttl_s: int = 30 * 86_400
    telemetry_ttl_s: int = 365 * 86_400
    failed_work_ttl_s: int = 14 * 86_400
    workflow_ttl_s: int = 30 * 86_400
    warrant_mark_ttl_s: int = 86_400
    checkpoint_ttl_s: int = 30 * 86_400
    database_urls: str = ""
    slot: int = 1
    devices: str = ""
    device_idle_s: int = 300
    witness_policy: str = ""
    witness_max_lag_s: int = 300
    witness_networks: str = ""
    probe_every_s: int = 0
    prove_every_s: int = 5

    @property
    def base_url(self) -> str:
        """Under which the API says that it is reached."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.public_url.rstrip("/") or f"http://{host}:{self.port}"

    @property
    def database(self) -> Path:
        """The SQLite file of the installation."""
        return self.data / "store" / "licet.db"

    @property
    def api_socket(self) -> Path:
        """The internal door of this slot's api, for its worker alone."""
        return self.data / "run" / "api" / f"api{self._slot_suffix}.sock"

    def database_url_file(self, role: str) -> Path:
        """The file with the URL of the PostgreSQL database for one of its roles."""
        return Path(self.database_urls) / f"{role}.url"

    @property
    def serve_lock(self) -> Path:
        """Held by the supervisor of this slot."""
        return self.data / "run" / f"serve{self._slot_suffix}.lock"

    @property
    def signer_lock(self) -> Path:
        """Held by the one supervisor that runs the signer."""
        return self.data / "run" / "signer.lock"

    @property
    def worker_plain(self) -> Path:
        """Where this slot's worker decrypts; emptied when it starts."""
        return self.worker_data / f"plain{self._slot_suffix}"

    def worker_lock(self, slot: int) -> Path:
        """Held by the worker of a slot as long as it lives."""
        return self.worker_data / ("lock" if slot == 1 else f"lock-{slot}")

    @property
    def _slot_suffix(self) -> str:
        return "" if self.slot == 1 else f"-{self.slot}"

    @property
    def signer_socket(self) -> Path:
        """The door of the signer."""
        return self.data / "run" / "signer" / "signer.sock"

    @property
    def router_socket(self) -> Path:
        """The router's door, for the worker alone."""
        return self.data / "run" / "router" / CONTROL_SOCKET

    @property
    def router_data(self) -> Path:
        """The router's own state: deployments, spent warrants, and the files of models while they are deployed."""
        return self.data / "router"

    @property
    def signer_data(self) -> Path:
        """Keys and last checkpoints; the signer alone reads it."""
        return self.data / "signer"

    @property
    def spool(self) -> Path:
        """Uploads and artifacts on their way, each for a short time."""
        return self.data / "spool"

    @property
    def worker_data(self) -> Path:
        """The adapters' own state: spent warrants, recorded effects, work in progress."""
        return self.data / "worker"

    @property
    def trust_root(self) -> Path:
        """The public keys of this installation, for its own processes and for auditors to take a copy of."""
        return self.data / "trust-root.json"

    @property
    def worker_sign(self) -> Path:
        """This slot's worker's sign of life: its process id once it works, touched while it lives, where the api can see it."""
        return self.database.parent / f"worker{self._slot_suffix}.alive"

    @property
    def router_sign(self) -> Path:
        """The router's sign of life, like the worker's: it is there once it takes requests."""
        return self.database.parent / "router.alive"

    @property
    def storage_away(self) -> Path:
        """While it is there, an adapter's storage cannot be reached; this slot's worker writes it, its api looks for it."""
        return self.database.parent / f"storage{self._slot_suffix}.away"

    @property
    def storage_unlocked(self) -> Path:
        """While it is there, something that is held lost its lock in an adapter's storage; this slot's worker writes it."""
        return self.database.parent / f"storage{self._slot_suffix}.unlocked"

    @property
    def probe_report(self) -> Path:
        """What came of the scheduled probes; a worker writes it, of whichever slot, and the api looks at it."""
        return self.database.parent / "probes.json"

    @property
    def metrics_token(self) -> Path:
        """What must be shown to read metrics; made before the first process needs it."""
        return self.database.parent / "metrics.token"

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """The allow-list of adapters."""
        return tuple(name.strip() for name in self.adapters.split(",") if name.strip())

    @property
    def adapter_options(self) -> Mapping[str, str]:
        """What adapters are configured with, by the name of the setting; read-only."""
        of_adapters = ("s3_", "ticket", "outbound_")
        named = (field.name for field in fields(self) if field.name.startswith(of_adapters))
        options = {name: str(getattr(self, name)) for name in named}
        return MappingProxyType(options | {"devices": ",".join(self.device_uuids)})

    @property
    def device_uuids(self) -> tuple[str, ...]:
        """The allow-list of devices."""
        return tuple(uuid.strip() for uuid in self.devices.split(",") if uuid.strip())

    def to_environment(self) -> dict[str, str]:
        """These settings as environment variables, to hand them to a child process."""
        return {PREFIX + field.name.upper(): str(getattr(self, field.name)) for field in fields(self)}


def _parse(name: str, kind: Any, text: str) -> Any:
    try:
        if kind == "Path":
            return Path(text)
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
    except ValueError as error:
        raise ConfigurationError(f"{PREFIX}{name.upper()} must be of type {kind}, not {text!r}") from error
    return text


def load_settings(environment: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the settings.

    Args:
        environment: Where to read from; the process's environment by default.
        overrides: Values that win over the environment; None means not given.

    Raises:
        ConfigurationError: A value is of the wrong type, or out of bounds.
    """
    source = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    for field in fields(Settings):
        text = source.get(PREFIX + field.name.upper())
        if text is not None:
            values[field.name] = _parse(field.name, field.type, text)
    values.update({name: value for name, value in overrides.items() if value is not None})
    # Processes of their own, and jobs with a folder of their own, must find it alike.
    settings = Settings(**values)
    settings = replace(settings, data=settings.data.absolute())
    for name in (
        *("max_body_bytes", "max_upload_bytes", "max_uploads_per_principal", "upload_ttl_s"),
        *("max_tenant_uploads_bytes", "examination_s", "examinations"),
        *("decision_max_age_s", "lease_s", "checkpoint_interval_s", "api_threads", "uid_base", "slot"),
        *("max_requests", "max_waiting_requests", "rate_per_token", "rate_per_tenant", "drain_s", "min_free_bytes"),
        *("idempotency_ttl_s", "telemetry_ttl_s", "failed_work_ttl_s", "workflow_ttl_s", "warrant_mark_ttl_s"),
        *("checkpoint_ttl_s", "device_idle_s", "witness_max_lag_s"),
        *("router_connections", "endpoints_per_tenant", "replicas_per_tenant"),
        *("webhook_tries", "webhook_first_pause_s", "outbound_timeout_s", "webhook_history_s", "ticket_max_age_s"),
    ):
        if getattr(settings, name) <= 0:
            raise ConfigurationError(f"{PREFIX}{name.upper()} must be above 0, not {getattr(settings, name)}")
    if not 0 <= settings.metrics_port < 65_534:  # noqa: PLR2004 - the highest port but two, since worker and router take these.
        raise ConfigurationError(f"{PREFIX}METRICS_PORT must be 0 or a port below 65534, not {settings.metrics_port}")
    if settings.otlp_endpoint and not settings.otlp_endpoint.startswith(("http://", "https://")):
        raise ConfigurationError(f"{PREFIX}OTLP_ENDPOINT must be an http or https address, without a path to traces")
    if settings.public_url and not settings.public_url.startswith(("http://", "https://")):
        raise ConfigurationError(f"{PREFIX}PUBLIC_URL must be an http or https address, such as https://licet.example")
    if settings.decision_max_age_s * 1000 >= MAX_DECISION_AGE_MS:
        raise ConfigurationError(
            f"{PREFIX}DECISION_MAX_AGE_S must be below {MAX_DECISION_AGE_MS // 1000}, the oldest decision the signer accepts"
        )
    _check_own_work(settings)
    _check_ports(settings)
    _check_storage(settings)
    _check_devices(settings)
    if settings.users not in USERS:
        raise ConfigurationError(f"{PREFIX}USERS must be one of {', '.join(USERS)}, not {settings.users!r}")
    _check_ways_out(settings)
    return _with_files(settings)


def _check_own_work(settings: Settings) -> None:
    if settings.probe_every_s and settings.probe_every_s < _SHORTEST_PROBING_S:
        raise ConfigurationError(
            f"{PREFIX}PROBE_EVERY_S must be 0 or at least {_SHORTEST_PROBING_S}, not {settings.probe_every_s}"
        )
    if settings.prove_every_s < 0:
        raise ConfigurationError(
            f"{PREFIX}PROVE_EVERY_S must be 0 for never, or a whole number of seconds, not {settings.prove_every_s}"
        )


def _check_ports(settings: Settings) -> None:
    """Each process listens on ports of its own; a port of 0 is any that is free, or none."""
    taken: dict[int, str] = {}
    metrics = {"the api": 0, "the worker": 1, "the router": 2} if settings.metrics_port else {}
    for port, what in (
        (settings.port, f"{PREFIX}PORT"),
        (settings.router_port, f"{PREFIX}ROUTER_PORT"),
        *((settings.metrics_port + more, f"metrics of {who} ({PREFIX}METRICS_PORT)") for who, more in metrics.items()),
    ):
        if port and port in taken:
            raise ConfigurationError(f"port {port} is both {taken[port]} and {what}: choose another for one of them")
        taken[port] = what


def _check_ways_out(settings: Settings) -> None:
    if settings.outbound_timeout_s > _LONGEST_TRY_S:
        raise ConfigurationError(
            f"{PREFIX}OUTBOUND_TIMEOUT_S must be at most {_LONGEST_TRY_S}, not {settings.outbound_timeout_s}"
        )
    for name in ("outbound_networks", "witness_networks"):
        for network in str(getattr(settings, name)).split(","):
            try:
                _ = ipaddress.ip_network(network.strip()) if network.strip() else None
            except ValueError as error:
                raise ConfigurationError(
                    f"{PREFIX}{name.upper()}: {network.strip()!r} is no network: {error}"
                ) from error
    if settings.tickets and settings.tickets not in settings.adapter_names:
        raise ConfigurationError(
            f"{PREFIX}TICKETS names {settings.tickets!r}, which {PREFIX}ADAPTERS does not allow: add it there"
        )
    if settings.tickets_url and "{ticket}" not in urlsplit(settings.tickets_url).path:
        raise ConfigurationError(f"{PREFIX}TICKETS_URL must have {{ticket}} in its path")


def _with_files(settings: Settings) -> Settings:
    if settings.witness_policy:
        settings = replace(settings, witness_policy=str(Path(settings.witness_policy).absolute()))
    if settings.database_urls:
        settings = replace(settings, database_urls=str(Path(settings.database_urls).absolute()))
    elif settings.slot > 1:
        raise ConfigurationError(
            f"{PREFIX}SLOT above 1 needs PostgreSQL, and {PREFIX}DATABASE_URLS is not set: one SQLite file is one slot's"
        )
    if settings.slot > MAX_SLOT:
        raise ConfigurationError(f"{PREFIX}SLOT must be at most {MAX_SLOT}, not {settings.slot}")
    return settings


def _check_storage(settings: Settings) -> None:
    for name, least in (("s3_timeout_s", 1), ("s3_upload_age_s", 1), ("s3_retention_days", 0)):
        if getattr(settings, name) < least:
            raise ConfigurationError(f"{PREFIX}{name.upper()} must be at least {least}, not {getattr(settings, name)}")
    if settings.s3_addressing not in ADDRESSING:
        raise ConfigurationError(
            f"{PREFIX}S3_ADDRESSING must be one of {', '.join(ADDRESSING)}, not {settings.s3_addressing!r}"
        )
    if settings.s3_prefix and not settings.s3_prefix.endswith("/"):
        # What begins with it would be taken for ours: so would all of `licet-2/` for `licet`.
        raise ConfigurationError(f"{PREFIX}S3_PREFIX must end in /, as in {settings.s3_prefix + '/'!r}")
    for name in ("objects_adapter", "registry_adapter"):
        if getattr(settings, name) not in settings.adapter_names:
            raise ConfigurationError(
                f"{PREFIX}{name.upper()} is {getattr(settings, name)!r}, which {PREFIX}ADAPTERS does not allow: add it there"
            )
    missing = [name for name in NEEDED_ADAPTERS if name not in settings.adapter_names]
    if missing:
        raise ConfigurationError(
            f"{PREFIX}ADAPTERS does not allow {', '.join(missing)}, without which there is no service: add it"
        )


def _check_devices(settings: Settings) -> None:
    for uuid in settings.device_uuids:
        if not DEVICE_UUID.match(uuid):
            raise ConfigurationError(
                f"{PREFIX}DEVICES names whole devices by UUID (GPU-8-4-4-4-12 hex digits; see nvidia-smi -L), not {uuid!r}"
            )
    if settings.device_idle_s <= settings.lease_s:
        raise ConfigurationError(
            f"{PREFIX}DEVICE_IDLE_S must be above {PREFIX}LEASE_S ({settings.lease_s}): a run gives a sign of life by half of that"
        )
