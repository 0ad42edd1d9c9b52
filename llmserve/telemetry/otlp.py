"""Whether traces are wanted, and where they go: as the standard `OTEL_*` variables say.

OpenTelemetry is imported only if they are. Its SDK reads the rest of its variables itself:
headers, sampling, batches, the name of the service.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from llmserve.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

FLUSH_S = 2.0

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class Export(NamedTuple):
    tracing: "Tracing"
    close: Callable[[], None]  # sends what is left, if the collector takes it within `FLUSH_S`


def start_export(environment: Mapping[str, str]) -> Export | None:
    """None where the environment wants no traces, or the extra `otel` is not installed."""
    if not _is_wanted(environment):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning("no traces: %s; run scripts/setup --with otel", error)
        return None
    from llmserve.telemetry.tracing import Tracing

    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "llmserve"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    endpoint = urlsplit(_first(environment, _ENDPOINTS) or "")
    log.info("traces go to %s", endpoint.hostname)  # the rest can have a password
    return Export(Tracing(provider), lambda: _close(provider.shutdown))


def _close(shutdown: Callable[[], None]) -> None:
    # By itself it would try for 10 s or longer to reach a collector that is gone.
    thread = threading.Thread(target=shutdown, name="traces", daemon=True)
    thread.start()
    thread.join(FLUSH_S)


def _is_wanted(environment: Mapping[str, str]) -> bool:
    if not _first(environment, _ENDPOINTS):
        return False
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if exporter == "none":
        return False
    protocol = _first(environment, _PROTOCOLS) or "http/protobuf"
    if exporter != "otlp" or protocol != "http/protobuf":
        log.warning("no traces: they go by otlp and http/protobuf, not %s, %s", exporter, protocol)
        return False
    return True


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((value for name in names if (value := environment.get(name, "").strip())), None)
