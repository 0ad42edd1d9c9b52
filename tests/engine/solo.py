"""What one request should get, computed alone, one token at a time, on a fresh `FakeRuntime`."""

from collections.abc import Sequence
from typing import NamedTuple

from llmserve.core import FinishReason, SamplingParams
from llmserve.engine.output.text import TextStream
from llmserve.engine.runtime import Chunk
from llmserve.engine.sampling.sampler import Sampler
from tests.fakes import EOS, FakeRuntime

GREEDY = SamplingParams(temperature=0)


class Answer(NamedTuple):
    text: str
    reason: FinishReason
    stop: str | None
    num_generated: int


def answer_alone(
    prompt: Sequence[int],
    max_tokens: int,
    *,
    sampling: SamplingParams = GREEDY,
    seed: int = 0,
    stops: Sequence[str] = (),
) -> Answer:
    runtime = FakeRuntime(num_cells=len(prompt) + max_tokens, max_batch=len(prompt))
    sampler = Sampler(sampling, seed=seed, vocab_size=EOS + 1, eog_tokens=[EOS])
    stream = TextStream(stops)
    text, pending = "", list(prompt)
    for num_generated in range(1, max_tokens + 1):
        logits = runtime.decode([Chunk(0, len(runtime.cells[0]), pending, True)])
        token = sampler.choose(logits[0])
        assert token is not None
        sampler.accept(token)
        pending = [token]
        if token == EOS:
            piece = stream.flush()
            return Answer(text + piece.text, FinishReason.STOP, piece.stop, num_generated)
        piece = stream.push(runtime.token_bytes(token))
        text += piece.text
        if piece.stop is not None:
            return Answer(text, FinishReason.STOP, piece.stop, num_generated)
    piece = stream.flush()
    reason = FinishReason.LENGTH if piece.stop is None else FinishReason.STOP
    return Answer(text + piece.text, reason, piece.stop, max_tokens)


def tokens_alone(prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What the fake says after `prompt`, greedy, never ending."""
    runtime = FakeRuntime()
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(runtime._logits(tokens)[:EOS].argmax()))
    return tokens[len(prompt) :]
