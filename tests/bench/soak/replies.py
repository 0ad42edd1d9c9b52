"""Bodies and streams of every dialect -> one form, and whether they are whole."""

from typing import Any

import msgspec
from msgspec import Struct


class Choice(Struct):
    """One generated text. `logprobs`: a token's text, its log probability and the best one's."""

    text: str = ""
    finish: str | None = None
    logprobs: list[tuple[str, float | None, float | None]] = []


class Reply(Struct):
    """What came back for one request; times are on the clock of `time.perf_counter`."""

    begin_s: float
    status: int = 0  # 0: no answer
    error: str = ""  # its code
    message: str = ""  # of the error, or what was wrong with the form
    retry_after_s: float | None = None
    choices: dict[int, Choice] = {}
    vectors: list[list[float]] = []
    num_tokens: int | None = None  # generated, as the server counts them
    is_whole: bool = False
    has_left: bool = False  # the client went away
    arrivals_s: list[float] = []  # of the pieces of a stream
    end_s: float = 0.0

    def choice(self, index: int) -> Choice:
        return self.choices.setdefault(index, Choice())


def read_error(reply: Reply, body: bytes) -> None:
    """An answer with a status other than 200."""
    try:
        error = msgspec.json.decode(body)["error"]
        reply.error, reply.message = str(error["code"]), str(error["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        reply.error, reply.message = "no envelope", body[:200].decode(errors="replace")


def read_body(reply: Reply, route: str, body: bytes) -> None:
    """A whole answer with status 200. Raises what decoding raises, if it is none."""
    answer = msgspec.json.decode(body)
    if route == "/inference":
        _native_end(reply, answer)
    elif route == "/v1/embeddings":
        ordered = sorted(answer["data"], key=lambda each: each["index"])
        reply.vectors = [each["embedding"] for each in ordered]
        reply.is_whole = True
    elif route == "/v1/responses":
        _response_end(reply, answer)
    else:
        for choice in answer["choices"]:
            _openai_choice(reply.choice(choice["index"]), choice, choice.get("message") or {})
        reply.num_tokens = answer["usage"]["completion_tokens"]
        reply.is_whole = True


def read_event(reply: Reply, route: str, data: str) -> bool:
    """One event of a stream; whether it has text. Raises as `read_body`."""
    if reply.is_whole:
        raise ValueError(f"after the end: {data[:80]}")
    if data == "[DONE]":
        reply.is_whole = all(choice.finish for choice in reply.choices.values())
        return False
    event = msgspec.json.decode(data)
    if error := event.get("error"):
        reply.error, reply.message = str(error["code"]), str(error["message"])
        return False
    if route == "/inference":
        return _native_event(reply, event)
    if route == "/v1/responses":
        return _response_event(reply, event)
    if usage := event.get("usage"):
        reply.num_tokens = usage["completion_tokens"]
    before = sum(len(choice.text) for choice in reply.choices.values())
    for choice in event["choices"]:
        _openai_choice(reply.choice(choice["index"]), choice, choice.get("delta") or {})
    return sum(len(choice.text) for choice in reply.choices.values()) > before


def _native_event(reply: Reply, event: dict[str, Any]) -> bool:
    if "delta" in event:
        reply.choice(0).text += event["delta"]
        return bool(event["delta"])
    streamed = reply.choice(0).text
    _native_end(reply, event)
    if streamed != event["generated_text"]:
        raise ValueError(f"streamed {streamed!r}, then told {event['generated_text']!r}")
    return False


def _native_end(reply: Reply, answer: dict[str, Any]) -> None:
    choice = reply.choice(0)
    choice.text = answer["generated_text"]
    details = answer.get("details")
    choice.finish = details["finish_reason"] if details else "unknown"
    reply.num_tokens = details["generated_tokens"] if details else None
    reply.is_whole = True


def _response_event(reply: Reply, event: dict[str, Any]) -> bool:
    if event["type"] == "response.output_text.delta":
        reply.choice(0).text += event["delta"]
        return True
    if event["type"] in ("response.completed", "response.incomplete"):
        streamed = reply.choice(0).text
        _response_end(reply, event["response"])
        if streamed != reply.choice(0).text:
            raise ValueError(f"streamed {streamed!r}, then told {reply.choice(0).text!r}")
    return False


def _response_end(reply: Reply, response: dict[str, Any]) -> None:
    choice = reply.choice(0)
    parts = [part for item in response["output"] for part in item.get("content") or ()]
    choice.text = "".join(part["text"] for part in parts)
    choice.finish = "stop" if response["status"] == "completed" else "length"
    reply.num_tokens = response["usage"]["output_tokens"]
    reply.is_whole = True


def _openai_choice(choice: Choice, told: dict[str, Any], message: dict[str, Any]) -> None:
    """A choice of a body, or of a chunk, whose texts add up."""
    choice.text += told.get("text") or message.get("content") or ""
    choice.finish = told.get("finish_reason") or choice.finish
    logprobs = told.get("logprobs") or {}
    for each in logprobs.get("content") or ():
        best = max((top["logprob"] for top in each["top_logprobs"]), default=None)
        choice.logprobs.append((each["token"], each["logprob"], best))
    if "tokens" in logprobs:
        for token, value, top in zip(
            logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
        ):
            choice.logprobs.append((token, value, max((top or {}).values(), default=None)))
