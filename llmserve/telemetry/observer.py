"""One generation, or one call for embeddings, as metrics, log and trace want to know it."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from prometheus_client import Histogram

from llmserve.config.schema import ModelSpec
from llmserve.core import (
    Delta,
    EmbeddingRequest,
    Embeddings,
    Event,
    Finished,
    PromptLogprobs,
    Queued,
    ReasoningDelta,
    Request,
    Started,
    ToolCallDelta,
)
from llmserve.errors import LlmserveError
from llmserve.telemetry.metrics import Metrics
from llmserve.telemetry.request_record import DISCONNECTED, MAX_TEXT_LEN, current_record

if TYPE_CHECKING:
    from llmserve.telemetry.tracing import ModelSpan, Tracing


class Watch:
    """Sees one request, refused or answered: a context manager that `see`s its events.

    `model` is a name from the config, never the caller's word: each one makes a time series. It
    is the one asked for until another one answers.
    """

    def __init__(
        self,
        request: Request | EmbeddingRequest,
        metrics: Metrics,
        tracing: "Tracing | None" = None,
    ) -> None:
        self.model = ""
        self._request = request
        self._metrics = metrics
        self._tracing = tracing
        self._span: ModelSpan | None = None
        self._record = current_record()
        self._outcome: str = DISCONNECTED
        self._is_answered = False
        self._last_text_s: float | None = None
        self._inter_token: Histogram | None = None  # of the model that answers; labels() is slow
        self._answer: list[str] | None = None  # where it may be logged
        self._answer_len = 0
        if self._record and self._record.keeps_text:
            self._answer = []
            self._record.prompts.append(_text_of(request))

    def resolved(self, spec: ModelSpec) -> None:
        """Which model was asked for; the beginning of the span."""
        self.model = spec.name
        if self._tracing:
            self._span = self._tracing.start(self._request, spec)

    @property
    def trace_headers(self) -> dict[str, str]:
        """For a provider that is asked on behalf of this request."""
        return self._span.headers() if self._span else {}

    def see(self, event: Event) -> None:
        match event:
            case Started(model):
                self.model = model
                if self._record:
                    self._record.add_answer(model)
            case Queued() | PromptLogprobs():
                pass
            case Finished():
                self._finish(event)
            case _:
                self._see_part()
                if self._answer is not None:
                    self._keep(event)

    def _see_part(self) -> None:
        now_s = time.monotonic()
        if self._inter_token is None:
            self._inter_token = self._metrics.inter_token.labels(self.model)
        if self._last_text_s is not None:
            self._inter_token.observe(now_s - self._last_text_s)
        elif self._span:
            self._span.first_part()
        self._last_text_s = now_s

    def _finish(self, event: Finished) -> None:
        reason, usage, timings = event.reason, event.usage, event.timings
        self._outcome = reason
        self._is_answered = True
        metrics, model = self._metrics, self.model
        metrics.prompt_tokens.labels(model).inc(usage.prompt_tokens)
        metrics.cached_tokens.labels(model).inc(usage.cached_tokens)
        metrics.generated_tokens.labels(model).inc(usage.generated_tokens)
        metrics.queue_wait.labels(model).observe(timings.queue_s)
        if usage.generated_tokens:
            metrics.ttft.labels(model).observe(timings.ttft_s)
        if self._record:
            self._record.add_finished(reason, usage, timings)
        if self._span:
            self._span.finished(event)

    def _keep(self, event: Event) -> None:
        assert self._answer is not None
        text = ""
        match event:
            case Delta(text) | ReasoningDelta(text):
                pass
            case ToolCallDelta(_, arguments, _, name):
                text = f"{name} {arguments}" if name else arguments
        if self._answer_len <= MAX_TEXT_LEN:
            self._answer.append(text)
            self._answer_len += len(text)

    def see_embeddings(self, embeddings: Embeddings) -> None:
        self._outcome = "embedded"
        self._is_answered = True
        self._metrics.prompt_tokens.labels(self.model).inc(embeddings.prompt_tokens)
        self._metrics.embeddings.labels(self.model).inc(len(embeddings.vectors))
        if self._record:
            self._record.add_answer(embeddings.model)
            self._record.prompt_tokens += embeddings.prompt_tokens
        if self._span:
            self._span.embedded(embeddings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, LlmserveError):
            self._outcome = error.code
        elif isinstance(error, Exception):
            self._outcome = LlmserveError.code
        self._metrics.requests.labels(self.model, self._outcome).inc()
        is_fault = isinstance(error, Exception)
        failure = None if self._is_answered and not is_fault else self._outcome
        if self._record:
            if failure:
                self._record.fail(failure)
            if self._answer:
                self._record.answers.append("".join(self._answer))
        if self._span:
            self._span.end(self.model, failure, is_fault=is_fault)


def _text_of(request: Request | EmbeddingRequest) -> str:
    """The input, or its beginning, as it was given."""
    if isinstance(request, EmbeddingRequest):
        texts = [str(each) for each in request.inputs]
    elif request.messages is not None:
        texts = [f"{message.role}: {message.content}" for message in request.messages]
    else:
        prompt = request.prompt if request.prompt is not None else str(request.prompt_tokens)
        texts = [prompt] if request.system is None else [f"system: {request.system}", prompt]
    return "\n".join(texts)[: MAX_TEXT_LEN + 1]
