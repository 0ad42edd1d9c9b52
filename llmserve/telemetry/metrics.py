"""What `GET /metrics` shows. One registry per application, so that tests do not share counts."""

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
_STEP_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 4, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_BREAKER_STATES = ("closed", "half-open", "open")

M = TypeVar("M", bound=Counter | Gauge | Histogram)

# A second series for every counter, of no use.
disable_created_metrics()  # type: ignore[no-untyped-call]


class _Row(Generic[M]):
    """A row of the table in `Metrics`, whose every instance has a metric of its own."""

    def __init__(
        self, kind: type[M], name: str, help_text: str, *labels: str, **options: Any
    ) -> None:
        labels = labels or ("model",)
        self.make: Callable[..., M] = partial(
            kind, f"llmserve_{name}", help_text, labels, **options
        )

    def __get__(self, metrics: "Metrics", owner: "type[Metrics]") -> M:
        raise AssertionError("`Metrics.__init__` has put a metric in its place")


class Metrics:
    """All metrics, as a table: kind, name, help, labels (without any: the model), buckets.

    Names and labels are contract. A counter's name gets `_total` at its end.
    """

    content_type = CONTENT_TYPE_LATEST

    requests = _Row(
        Counter,
        "requests",
        "Requests by outcome: a finish reason, embedded, an error code, or disconnected",
        "model",
        "outcome",
    )
    prompt_tokens = _Row(Counter, "prompt_tokens", "Prompt tokens of answered requests")
    cached_tokens = _Row(
        Counter, "cached_tokens", "Prompt tokens whose KV cells were reused instead of computed"
    )
    generated_tokens = _Row(Counter, "generated_tokens", "Generated tokens")
    embeddings = _Row(Counter, "embeddings", "Vectors of answered requests")
    ttft = _Row(
        Histogram,
        "time_to_first_token_seconds",
        "Time from acceptance to the first token",
        buckets=_SECONDS,
    )
    inter_token = _Row(
        Histogram,
        "inter_token_seconds",
        "Time between two pieces of text of one answer",
        buckets=_STEP_SECONDS,
    )
    running = _Row(Gauge, "running_requests", "Requests that hold a slot")
    queue_depth = _Row(Gauge, "queue_depth", "Requests waiting for a slot")
    batch_size = _Row(Histogram, "batch_tokens", "Tokens computed in one step", buckets=_SIZES)
    step = _Row(
        Histogram,
        "step_seconds",
        "Duration of one step: llama_decode, sampling, text",
        buckets=_STEP_SECONDS,
    )
    step_ratio = _Row(
        Histogram,
        "step_over_expected",
        "Duration of one step divided by what the cost model expected",
        buckets=_RATIOS,
    )
    step_prompt_tokens = _Row(
        Histogram,
        "step_prompt_tokens",
        "Prompt tokens computed in one step, of steps that had any",
        buckets=_SIZES,
    )
    preemptions = _Row(
        Counter, "preemptions", "Times that a request lost its slot to others, to continue later"
    )
    drafted_tokens = _Row(Counter, "drafted_tokens", "Draft tokens verified")
    accepted_tokens = _Row(Counter, "accepted_tokens", "Draft tokens accepted")
    queue_wait = _Row(
        Histogram, "queue_wait_seconds", "Time from acceptance to a slot", buckets=_SECONDS
    )
    key_requests = _Row(
        Counter,
        "key_requests",
        "Requests by the name of the API key (none: refused) and the status of the answer",
        "key",
        "status",
    )
    key_tokens = _Row(
        Counter, "key_tokens", "Prompt and generated tokens by the name of the API key", "key"
    )
    crashes = _Row(Counter, "engine_crashes", "Model processes that died, also while loading")
    fallbacks = _Row(Counter, "fallbacks", "Requests passed on to a fallback model", "model", "to")
    attempts = _Row(
        Counter,
        "remote_attempts",
        "Attempts at a provider by outcome: ok, or an error code",
        "model",
        "outcome",
    )
    breaker = _Row(
        Gauge,
        "remote_breaker",
        "Circuit breaker of a provider's address: 0 closed, 1 half-open, 2 open",
        "model",
        "url",
    )

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        for attribute, row in vars(Metrics).items():
            if isinstance(row, _Row):
                setattr(self, attribute, row.make(registry=self._registry))

    def count_crash(self, model: str) -> None:
        self.crashes.labels(model).inc()

    def count_attempt(self, model: str, outcome: str) -> None:
        self.attempts.labels(model, outcome).inc()

    def observe_breaker(self, model: str, url: str, state: str) -> None:
        self.breaker.labels(model, url).set(_BREAKER_STATES.index(state))

    def forget_breakers(self) -> None:
        """Before all that there are now are observed."""
        self.breaker.clear()

    def observe_step(
        self,
        model: str,
        *,
        num_decoded: int,
        num_prefilled: int,
        step_s: float,
        expected_s: float | None,
    ) -> None:
        self.batch_size.labels(model).observe(num_decoded + num_prefilled)
        self.step.labels(model).observe(step_s)
        if expected_s is not None:
            self.step_ratio.labels(model).observe(step_s / expected_s)
        if num_prefilled:
            self.step_prompt_tokens.labels(model).observe(num_prefilled)

    def observe_draft(self, model: str, num_drafted: int, num_accepted: int) -> None:
        self.drafted_tokens.labels(model).inc(num_drafted)
        self.accepted_tokens.labels(model).inc(num_accepted)

    def observe_preemptions(self, model: str, count: int) -> None:
        self.preemptions.labels(model).inc(count)

    def observe_load(self, model: str, num_running: int, num_waiting: int) -> None:
        self.running.labels(model).set(num_running)
        self.queue_depth.labels(model).set(num_waiting)

    def render(self) -> bytes:
        """The prometheus text format."""
        return generate_latest(self._registry)
