"""Traces over the processes, by OpenTelemetry: off unless a collector is named.

Rules kept here:

- A span bears names of routes, actions, methods and states, never what was sent, by whom, or what was answered.
- The context of a trace is a W3C ``traceparent``: taken from a request, handed through the internal doors and the queue.
- The signer has no network. It says, to a caller that names a trace, when it began and ended; the caller exports that
  as a span of the signer.
- Export never holds anything up: what the collector does not take in time is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from licet_engine.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

_TRACEPARENT: Final = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_EXPORT_WITHIN_S: Final = 5
_SIGNER: Final = "licet-signer"


class _Tracing:
    """The tracers of this process; both are None while tracing is off."""

    own: Tracer | None = None
    signer: Tracer | None = None
    providers: tuple[TracerProvider, ...] = ()


def configure(service: str, endpoint: str) -> None:
    """Begin to trace in this process.

    Args:
        service: What this process is called, such as ``licet-api``.
        endpoint: Base address of an OTLP/HTTP collector; empty for no traces.

    Raises:
        ConfigurationError: What traces need is not installed.
    """
    if not endpoint:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra.
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - as above.
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - as above.
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - as above.
    except ModuleNotFoundError as error:
        raise ConfigurationError("traces need more than is installed: pip install 'licet[telemetry]'") from error
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_WITHIN_S)
    # One processor for both: it exports spans of any provider.
    processor = BatchSpanProcessor(exporter, schedule_delay_millis=1000)
    made = []
    for name in (service, _SIGNER):
        provider = TracerProvider(resource=Resource({"service.name": name}), shutdown_on_exit=False)
        provider.add_span_processor(processor)
        made.append(provider)
    _Tracing.providers = tuple(made)
    _Tracing.own, _Tracing.signer = (provider.get_tracer("licet") for provider in made)


def shutdown() -> None:
    """Export what is left, within a few seconds, and stop tracing."""
    providers, _Tracing.providers = _Tracing.providers, ()
    _Tracing.own = _Tracing.signer = None
    for provider in providers[:1]:  # The processor is theirs together.
        provider.shutdown()


def traceparent() -> str:
    """The trace and span at hand, to be handed on; empty if there is none."""
    if _Tracing.own is None:
        return ""
    from opentelemetry import trace  # noqa: PLC0415 - an extra.

    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _parent(text: str) -> Context | None:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415 - an extra.

    if not _TRACEPARENT.fullmatch(text):
        return None
    return TraceContextTextMapPropagator().extract({"traceparent": text})


def serving(name: str, header: bytes) -> AbstractContextManager[Any]:
    """A span of a request from outside, in the trace that it names, if it does."""
    return _span(name, header.decode("latin-1"), "SERVER") if _Tracing.own is not None else nullcontext()


def continuing(name: str, handed_on: str) -> AbstractContextManager[Any]:
    """A span of what another process of ours asked for, in its trace."""
    return _span(name, handed_on, "CONSUMER") if _Tracing.own is not None else nullcontext()


def within(name: str) -> AbstractContextManager[Any]:
    """A span within the one at hand."""
    if _Tracing.own is None:
        return nullcontext()
    return _Tracing.own.start_as_current_span(name, record_exception=False, set_status_on_exception=False)


@contextmanager
def _span(name: str, parent: str, kind: str) -> Iterator[None]:
    from opentelemetry.trace import SpanKind  # noqa: PLC0415 - an extra.

    if _Tracing.own is None:
        yield
        return
    # What an exception says may hold what was sent: it is not recorded.
    with _Tracing.own.start_as_current_span(
        name,
        context=_parent(parent),
        kind=SpanKind[kind],
        record_exception=False,
        set_status_on_exception=False,
    ):
        yield


class RpcObserver:
    """Observes the calls of this process through the internal doors; see ``licet_attestations.rpc.Observer``.

    Args:
        count: Told of each call: the door, the method, the outcome, and how long it took.
    """

    def __init__(self, count: Callable[[str, str, str, float], None]) -> None:
        self._count = count

    def traceparent(self) -> str:
        """See ``rpc.Observer``."""
        return traceparent()

    def called(
        self, path: Path, method: str, outcome: str, duration_s: float, served_us: tuple[int, int] | None
    ) -> None:
        """See ``rpc.Observer``."""
        self._count(path.stem, method, outcome, duration_s)
        if served_us is not None:
            signed(method, *served_us)


def signed(method: str, began_us: int, ended_us: int) -> None:
    """Export, as a span of the signer within the one at hand, what the signer said of a call."""
    if _Tracing.signer is not None:
        span = _Tracing.signer.start_span(f"signer {method}", start_time=began_us * 1000)
        span.end(end_time=ended_us * 1000)
