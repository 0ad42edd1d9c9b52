"""Inputs from which each target begins: examples of other tests."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from llmserve.chat.tools.formats.detect import FORMATS
from tests.chat.tools.recorded import RECORDED
from tests.chat.tools.test_parser import FRAGMENTS
from tests.engine.structured import test_gbnf
from tests.fuzz.ggufs.dissected import take_apart
from tests.fuzz.ggufs.mutants import CHANGES, mutants
from tests.fuzz.targets import answers, requests
from tests.gguf.test_gguf import NOT_SERVABLE, REFUSED
from tests.remote.hostile import WHOLE
from tests.remote.test_sse import STREAM
from tests.tiny_models import write_llama, write_mamba

# -- files ----------------------------------------------------------------------------------------


def gguf_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {
            "llama": take_apart(
                write_llama(folder / "a", layers=1, embedding=32, feed_forward=32, vocab=259)
            ),
            "mamba": take_apart(write_mamba(folder / "b", layers=1, embedding=32, vocab=259)),
        }
    small = [model.encode()[:20_000] for model in models.values()]
    lies = [mutant.content[:20_000] for mutant in mutants(models, 0, len(CHANGES))]
    return [*small, *lies, *(content for content, _ in (*REFUSED.values(), *NOT_SERVABLE.values()))]


_EVERY_SOURCE = b"""[server]
host = "::1"
memory_budget = "2GiB"
keep_alive_s = 0.5
[models.a]
path = "w/x.gguf"
aliases = ["mine", "b/c:d"]
keep_alive = "10m"
fallback = ["c", "b"]
[models.b]
hf = "owner/repo:Q4_K_M"
revision = "main"
pinned = true
[models.c]
remote = ["https://one.example/v1", "http://127.0.0.1:1"]
remote_model = "big"
headers = { X-Key = "1" }
retry = { max_attempts = 3 }
extra_parameters = ["top_k"]
"""


def config_seeds() -> list[bytes]:
    ours = (Path(__file__).parents[2] / "models.toml").read_bytes()
    return [ours, ours.replace(b"# ", b""), _EVERY_SOURCE, b"a = " + b"[" * 2000]


# -- answers --------------------------------------------------------------------------------------


def sse_seeds() -> list[bytes]:
    return [
        bytes(answers.NUM_PIECES) + STREAM,
        b"\7\1\2\3" + WHOLE,
        bytes(answers.NUM_PIECES) + b"data:\r\n" * 40,
    ]


def _stream(*events: Any, name: str = "") -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return b"".join(head + b"data: " + msgspec.json.encode(e) + b"\n\n" for e in events)


def _delta(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


def _block(what: str, index: int, **rest: Any) -> dict[str, Any]:
    return {"type": f"content_block_{what}", "index": index, **rest}


_CALL = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}}
_LOGPROBS = {"content": [{"token": "a", "logprob": -1, "bytes": [97], "top_logprobs": []}]}


def provider_answer_seeds() -> list[bytes]:
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    openai = _stream(_delta(content="a"), _delta(reasoning="b"), _delta(tool_calls=[_CALL]), end)
    logprobs = _stream({"choices": [{"text": "a", "logprobs": _LOGPROBS, "finish_reason": "stop"}]})
    anthropic = _stream(
        {"type": "message_start", "message": {"usage": {"input_tokens": 3}}},
        _block("start", 0, content_block={"type": "text", "text": "a"}),
        _block("start", 1, content_block={"type": "tool_use", "name": "f"}),
        _block("delta", 1, delta={"partial_json": "{}"}),
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
        {"type": "message_stop"},
    )
    error = _stream({"error": {"message": "no", "code": 429, "param": "x"}})
    deep = b'data: {"error": ' + b"[" * 2000
    bodies = [WHOLE, openai, logprobs, anthropic, error, deep + b"\n\n", _stream("x", name="error")]
    return [bytes([number]) + body for body in bodies for number in range(len(answers.DECODERS))]


def provider_error_seeds() -> list[bytes]:
    vectors = [[1.0, 0.5], "AACAPwAAAAA="]
    data = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    bodies: list[Any] = [
        {"error": {"message": "no", "type": "rate_limit_error", "param": "n"}}, {"error": "no"},
        [{"error": {"code": 7}}], {"detail": "x"}, {"data": data, "usage": {"prompt_tokens": 4}},
    ]  # fmt: skip
    return [b"\4\0" + msgspec.json.encode(body) for body in bodies] + [b"\0\0" + b"[" * 2000]


def format_seeds() -> list[bytes]:
    seeds = []
    for recorded in RECORDED.values():
        name = next(name for name in answers.FORMAT_NAMES if FORMATS[name] == recorded.format)
        head = [
            answers.FORMAT_NAMES.index(name),
            answers.THINKING_STYLES.index(recorded.thinking),
            int(recorded.in_thought),
        ]
        seeds.append(bytes([*head, 9, 1, 5, 30]) + recorded.output.encode())
    half = rb'<tool_call>{"parameters": {"a": "\ud800"}, "name": "f"}</tool_call>'
    seeds += [bytes([answers.FORMAT_NAMES.index("hermes"), *[0] * 6]) + half]
    words = "".join(FRAGMENTS).encode()
    return seeds + [
        bytes([number, 1, 0, 3, 50, 0, 8]) + words for number in range(len(answers.FORMAT_NAMES))
    ]


# -- requests -------------------------------------------------------------------------------------

_FIELDS: dict[str, Any] = {
    "model": "m", "stream": True, "temperature": 0.5, "top_p": 1, "stop": ["a"], "seed": 1,
    "logit_bias": {"5": -1}, "n": 2, "user": "u", "max_tokens": 3,
}  # fmt: skip
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_CALLS = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
_SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}


def body_seeds() -> list[bytes]:
    parameters = {"temperature": 1, "max_tokens": 5, "logit_bias": {"1": 2}}
    regex = {"type": "regex", "regex": "a"}
    chat_messages = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": None, "tool_calls": _CALLS},
        {"role": "tool", "tool_call_id": "c", "content": "x"},
    ]
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "x"},
    ]
    flat_tool = {"type": "function", **_TOOL["function"]}  # type: ignore[dict-item]
    bodies: list[dict[str, Any]] = [
        {"prompt": "a", "parameters": parameters, "response_format": regex},
        {**_FIELDS, "messages": chat_messages, "tools": [_TOOL], "response_format": _SCHEMA},
        {**_FIELDS, "prompt": [[1, 2]], "echo": True, "logprobs": 1, "grammar": 'root ::= "a"'},
        {"model": "m", "input": items, "tools": [flat_tool], "text": {"format": {"type": "text"}}},
        {"input": ["a", [1, 2]], "encoding_format": "base64", "dimensions": 4},
    ]  # fmt: skip
    seeds = [bytes([i]) + msgspec.json.encode(body) for i, body in enumerate(bodies)]
    deep = [bytes([i]) + b'{"prompt": ' + b"[" * 2000 for i in range(len(requests.READERS))]
    half = [bytes([1]) + msgspec.json.encode(bodies[1]).replace(b'"a"', b'"\\ud800"')]
    return seeds + deep + half


def gbnf_seeds() -> list[bytes]:
    whole = [test_gbnf.JSON, test_gbnf.ARITHMETIC, test_gbnf.LIST, test_gbnf.JAPANESE]
    return [grammar.encode() for grammar in whole] + [
        rb'root ::= [^a-z\]\x41] | ("b"{2,3} .)* # why',
        b"root ::= " + b"(" * 2000,
        b"root ::= [" + b"a" * 2000 + b"]",
    ]


MAKERS: dict[str, Callable[[], list[bytes]]] = {
    "gguf": gguf_seeds,
    "config": config_seeds,
    "sse": sse_seeds,
    "provider_answer": provider_answer_seeds,
    "provider_error": provider_error_seeds,
    "format": format_seeds,
    "body": body_seeds,
    "gbnf": gbnf_seeds,
}


@functools.cache
def seeds_of(name: str) -> list[bytes]:
    return MAKERS[name]()
