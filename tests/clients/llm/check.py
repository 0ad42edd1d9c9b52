"""The `llm` command, with a model of `extra-openai-models.yaml`."""

import json
import subprocess
import sys
from pathlib import Path

from tests.clients.report import Task, check, main
from tests.clients.trip import Trip

MODELS = """
- model_id: local
  model_name: {model}
  api_base: {base_url}
  supports_schema: true
  supports_tools: true
- model_id: responses
  model_name: {model}
  api_base: {base_url}
  responses: true
- model_id: base
  model_name: {model}
  api_base: {base_url}
  completion: true
- model_id: missing
  model_name: nobody
  api_base: {base_url}
"""


FUNCTION = """
def book_trip(city: str, days: int) -> str:
    "Book a trip to a city."
    return "The trip is booked."
"""


def llm(task: Task, *flags: str, ends_with: int = 0) -> str:
    """What the command prints."""
    Path("home").mkdir(exist_ok=True)
    models = MODELS.format(model=task.model, base_url=task.base_url)
    Path("home/extra-openai-models.yaml").write_text(models, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "llm", *flags],
        env={"LLM_USER_PATH": "home", "PATH": "/usr/bin:/bin", "HOME": "home"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == ends_with, done.stdout + done.stderr
    return (done.stdout if ends_with == 0 else done.stderr).removesuffix("\n")


def options(task: Task, max_tokens: int, model: str = "local") -> list[str]:
    return ["-m", model, "-o", "temperature", "0", "-o", "max_tokens", str(max_tokens)]


@check
def chat(task: Task) -> object:
    asked = ["prompt", "--no-stream", *options(task, task.max_tokens), "--log", task.question]
    text = llm(task, *asked)
    (log,) = json.loads(llm(task, "logs", "list", "-n", "1", "--json"))
    assert log["response"] == text
    return {
        "text": text,
        "prompt_tokens": log["input_tokens"],
        "completion_tokens": log["output_tokens"],
    }


@check
def stream(task: Task) -> object:
    """By default the command streams; how many pieces there were it does not say."""
    return {"text": llm(task, "prompt", *options(task, task.max_tokens), task.question)}


@check
def completions(task: Task) -> object:
    return {"text": llm(task, "prompt", *options(task, task.max_tokens, "base"), task.prompt)}


@check
def responses_stream(task: Task) -> object:
    asked = ["prompt", "-m", "responses", "-o", "temperature", "0"]
    return {"text": llm(task, *asked, "-o", "max_tokens", str(task.max_tokens), task.question)}


@check
def structured(task: Task) -> object:
    schema = json.dumps(Trip.model_json_schema())
    text = llm(task, "prompt", *options(task, 64), "--schema", schema, task.request)
    return Trip.model_validate_json(text).model_dump()


@check
def tool_auto(task: Task) -> object:
    """The command cannot force a call, but goes on after one."""
    asked = ["prompt", *options(task, 64), "--functions", FUNCTION, task.request]
    return {"calls": [], "text": llm(task, *asked)}


@check
def error(task: Task) -> object:
    message = llm(task, "prompt", "-m", "missing", "--no-stream", task.question, ends_with=1)
    return {"status": 404 if "404" in message else None, "message": message}


if __name__ == "__main__":
    main()
