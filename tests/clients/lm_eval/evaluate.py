"""lm-eval's `local-completions`, with the server's own tokenizer, on tasks that are on this disk.

Each check gives the scores and, in order, the log likelihood that lm-eval got for each request.
"""

import sys
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from tests.clients.report import check, write_report


def evaluate(url: str, name: str, **settings: Any) -> object:
    results = simple_evaluate(
        model="local-completions",
        model_args={
            "model": "smollm2",
            "base_url": f"{url}/v1/completions",
            "max_length": 1024,
            **settings,
        },
        tasks=[name],
        task_manager=TaskManager(include_path="tasks", include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    return {
        "scores": {key: value for key, value in results["results"][name].items() if "," in key},
        "likelihoods": [response for sample in samples for response in sample["filtered_resps"]],
    }


@check
def facts(url: str) -> object:
    return evaluate(url, "facts", tokenizer_backend="remote")


@check
def facts_together(url: str) -> object:
    """Eight prompts a request; the tokenizer is found by asking the server."""
    return evaluate(url, "facts", batch_size=8)


@check
def prose(url: str) -> object:
    return evaluate(url, "prose", tokenizer_backend="remote")


write_report(sys.argv[1])
