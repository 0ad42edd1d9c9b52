"""What `GET /metrics` shows. One registry per application, so that tests do not share counts."""

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
_BREAKER_STATES = ("closed", "half-open", "open")
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


# A second series for every counter, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        model = ("model",)
        self.requests = Counter(
            "llmserve_requests",
            "Requests by outcome: a finish reason, embedded, an error code, or disconnected",
            ("model", "outcome"),
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "llmserve_prompt_tokens", "Prompt tokens of answered requests", model, registry=registry
        )
        self.cached_tokens = Counter(
            "llmserve_cached_tokens",
            "Of the prompt tokens, those whose KV cells were reused instead of computed",
            model,
            registry=registry,
        )
        self.generated_tokens = Counter(
            "llmserve_generated_tokens", "Generated tokens", model, registry=registry
        )
        self.embeddings = Counter(
            "llmserve_embeddings", "Vectors of answered requests", model, registry=registry
        )
        self.ttft = Histogram(
            "llmserve_time_to_first_token_seconds",
            "From acceptance to the first token",
            model,
            buckets=_SECONDS,
            registry=registry,
        )
        self.inter_token = Histogram(
            "llmserve_inter_token_seconds",
            "Time between two pieces of text of one answer",
            model,
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self.running = Gauge(
            "llmserve_running_requests", "Requests that hold a slot", model, registry=registry
        )
        self.queue_depth = Gauge(
            "llmserve_queue_depth", "Requests waiting for a slot", model, registry=registry
        )
        self.batch_size = Histogram(
            "llmserve_batch_tokens",
            "Tokens computed in one step",
            model,
            buckets=_SIZES,
            registry=registry,
        )
        self.step = Histogram(
            "llmserve_step_seconds",
            "Duration of one step: llama_decode, sampling, text",
            model,
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self.step_ratio = Histogram(
            "llmserve_step_over_expected",
            "Duration of one step over what the cost model expected",
            model,
            buckets=_RATIOS,
            registry=registry,
        )
        self.step_prompt_tokens = Histogram(
            "llmserve_step_prompt_tokens",
            "Prompt tokens computed in one step, of steps that had any",
            model,
            buckets=_SIZES,
            registry=registry,
        )
        self.preemptions = Counter(
            "llmserve_preemptions",
            "Requests that lost their slot to others, and continue later",
            model,
            registry=registry,
        )
        self.drafted_tokens = Counter(
            "llmserve_drafted_tokens", "Guessed tokens that were verified", model, registry=registry
        )
        self.accepted_tokens = Counter(
            "llmserve_accepted_tokens", "Guessed tokens that came true", model, registry=registry
        )
        self.queue_wait = Histogram(
            "llmserve_queue_wait_seconds",
            "From acceptance to a slot",
            model,
            buckets=_SECONDS,
            registry=registry,
        )

        self.key_requests = Counter(
            "llmserve_key_requests",
            "Requests by the name of their API key (none: refused) and the status of the answer",
            ("key", "status"),
            registry=registry,
        )
        self.key_tokens = Counter(
            "llmserve_key_tokens",
            "Tokens of prompts and answers by the name of the API key",
            ("key",),
            registry=registry,
        )
        self.crashes = Counter(
            "llmserve_engine_crashes",
            "Processes of models that died, also while loading",
            model,
            registry=registry,
        )
        self.fallbacks = Counter(
            "llmserve_fallbacks",
            "Requests that another model was asked to answer",
            ("model", "to"),
            registry=registry,
        )
        self.attempts = Counter(
            "llmserve_remote_attempts",
            "Attempts at a provider by outcome: ok, or an error code",
            ("model", "outcome"),
            registry=registry,
        )
        self.breaker = Gauge(
            "llmserve_remote_breaker",
            "Whether an address of a provider is spared: 0 closed, 1 half-open, 2 open",
            ("model", "url"),
            registry=registry,
        )

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
