"""The contract of metrics: dashboards and alerts name them and their labels."""

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from llmserve.telemetry.metrics import Metrics

MODEL = {"model"}
CONTRACT = {
    "llmserve_batch_tokens": ("histogram", MODEL),
    "llmserve_cached_tokens": ("counter", MODEL),
    "llmserve_accepted_tokens": ("counter", MODEL),
    "llmserve_drafted_tokens": ("counter", MODEL),
    "llmserve_embeddings": ("counter", MODEL),
    "llmserve_engine_crashes": ("counter", MODEL),
    "llmserve_fallbacks": ("counter", {"model", "to"}),
    "llmserve_generated_tokens": ("counter", MODEL),
    "llmserve_inter_token_seconds": ("histogram", MODEL),
    "llmserve_key_requests": ("counter", {"key", "status"}),
    "llmserve_key_tokens": ("counter", {"key"}),
    "llmserve_preemptions": ("counter", MODEL),
    "llmserve_prompt_tokens": ("counter", MODEL),
    "llmserve_queue_depth": ("gauge", MODEL),
    "llmserve_queue_wait_seconds": ("histogram", MODEL),
    "llmserve_remote_attempts": ("counter", {"model", "outcome"}),
    "llmserve_remote_breaker": ("gauge", {"model", "url"}),
    "llmserve_requests": ("counter", {"model", "outcome"}),
    "llmserve_running_requests": ("gauge", MODEL),
    "llmserve_step_over_expected": ("histogram", MODEL),
    "llmserve_step_prompt_tokens": ("histogram", MODEL),
    "llmserve_step_seconds": ("histogram", MODEL),
    "llmserve_time_to_first_token_seconds": ("histogram", MODEL),
}


def test_names_kinds_and_labels_are_the_contract() -> None:
    metrics = Metrics()
    for metric in vars(metrics).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            labels = CONTRACT[next(iter(metric.collect())).name][1]
            metric.labels(**dict.fromkeys(labels, "x"))  # of all and no others, or it raises
    families = list(text_string_to_metric_families(metrics.render().decode()))
    assert {family.name: family.type for family in families} == {
        name: kind for name, (kind, _) in CONTRACT.items()
    }
    for family in families:
        labels = CONTRACT[family.name][1]
        assert {*family.samples[-1].labels} - {"le"} == labels, family.name


def test_each_application_has_counts_of_its_own() -> None:
    one, other = Metrics(), Metrics()
    one.count_crash("m")
    assert b'llmserve_engine_crashes_total{model="m"} 1.0' in one.render()
    assert b'model="m"' not in other.render()
