"""Spans: one for an HTTP request, and within it one for each generation.

The latter follow the GenAI semantic conventions
(https://github.com/open-telemetry/semantic-conventions-genai, as of 1.41). No attribute has words
of a prompt, an answer or an error. Imported only where traces are wanted, see `otlp`.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from llmserve import __version__
from llmserve.config.schema import ModelSpec
from llmserve.core import EmbeddingRequest, Embeddings, Finished, Mode, Request
from llmserve.telemetry.request_record import RequestRecord

Attributes = dict[str, AttributeValue]

# They warn of headers that callers send, and quote them.
for _name in ("opentelemetry.trace.span", "opentelemetry.trace.propagation.tracecontext"):
    logging.getLogger(_name).setLevel(logging.ERROR)

_PROPAGATOR = TraceContextTextMapPropagator()  # without baggage, which is not for providers


class Tracing:
    """Makes spans of what `provider` exports."""

    def __init__(self, provider: trace.TracerProvider) -> None:
        self._tracer = provider.get_tracer("llmserve", __version__)

    @contextmanager
    def request(
        self, method: str, path: str, headers: Mapping[str, str], record: RequestRecord
    ) -> Iterator["RequestSpan"]:
        """The span of an HTTP request, current within the block; `headers` may continue a trace."""
        with self._tracer.start_as_current_span(
            method,
            _PROPAGATOR.extract(headers),
            SpanKind.SERVER,
            {
                "http.request.method": method,
                "url.path": path,
                "url.scheme": "http",
                "llmserve.request_id": record.request_id,
            },
            record_exception=False,  # what it says may quote the request
            set_status_on_exception=False,
        ) as span:
            context = span.get_span_context()
            if context.is_valid:
                record.trace_id = trace.format_trace_id(context.trace_id)
            yield RequestSpan(span, method)

    def start(self, request: Request | EmbeddingRequest, spec: ModelSpec) -> "ModelSpan":
        """The span of a generation or of embeddings, by the model `spec`."""
        operation = _operation(request, spec)
        model = request.model or spec.name
        attributes: Attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "llmserve",
            "gen_ai.request.model": model,
            **(_parameters(request) if isinstance(request, Request) else {}),
        }
        kind = SpanKind.CLIENT if spec.remote else SpanKind.INTERNAL
        return ModelSpan(self._tracer.start_span(f"{operation} {model}", None, kind, attributes))


class RequestSpan:
    def __init__(self, span: Span, method: str) -> None:
        self._span = span
        self._method = method

    def answered(self, status: int, route: str | None, error: str | None) -> None:
        """How the request ended; `status` 0 for an answer that never began."""
        if route:
            self._span.update_name(f"{self._method} {route}")
            self._span.set_attribute("http.route", route)
        if status:
            self._span.set_attribute("http.response.status_code", status)
        if error:
            self._span.set_attribute("error.type", error)
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))


class ModelSpan:
    def __init__(self, span: Span) -> None:
        self._span = span

    def headers(self) -> dict[str, str]:
        """With which the next service continues the trace."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(self._span))
        return carrier

    def first_part(self) -> None:
        self._span.add_event("first_token")

    def finished(self, event: Finished) -> None:
        usage, timings = event.usage, event.timings
        self._span.set_attributes(
            {
                "gen_ai.response.finish_reasons": (event.reason.value,),
                "gen_ai.response.time_to_first_chunk": timings.ttft_s,
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.generated_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
                "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
                "llmserve.queue_s": timings.queue_s,
            }
        )

    def embedded(self, embeddings: Embeddings) -> None:
        self._span.set_attributes(
            {
                "gen_ai.usage.input_tokens": embeddings.prompt_tokens,
                "gen_ai.embeddings.dimension.count": int(embeddings.vectors.shape[1]),
            }
        )

    def end(self, model: str, failure: str | None, *, is_fault: bool) -> None:
        """`failure` says why there is no whole answer; a caller that left is no fault."""
        self._span.set_attribute("gen_ai.response.model", model)
        if failure:
            self._span.set_attribute("error.type", failure)
        if is_fault:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def _operation(request: Request | EmbeddingRequest, spec: ModelSpec) -> str:
    if isinstance(request, EmbeddingRequest):
        return "embeddings"
    mode = request.mode or (Mode.COMPLETION if request.prompt_tokens else spec.default_mode)
    is_text = mode is Mode.COMPLETION and request.messages is None
    return "text_completion" if is_text else "chat"


def _parameters(request: Request) -> Attributes:
    """Those with numbers: stop strings can be parts of the text."""
    sampling, constraint = request.sampling, request.constraint
    is_json = constraint is not None and constraint.kind in ("json", "json_schema")
    found: Attributes = {
        "gen_ai.output.type": "json" if is_json else "text",
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
    }
    if sampling.top_k:
        found["gen_ai.request.top_k"] = float(sampling.top_k)
    if sampling.frequency_penalty:
        found["gen_ai.request.frequency_penalty"] = sampling.frequency_penalty
    if sampling.presence_penalty:
        found["gen_ai.request.presence_penalty"] = sampling.presence_penalty
    if request.max_tokens is not None:
        found["gen_ai.request.max_tokens"] = request.max_tokens
    if request.seed is not None:
        found["gen_ai.request.seed"] = request.seed
    return found
