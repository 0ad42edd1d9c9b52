"""Whether answers are right: by their form at once, by what the model says afterwards."""

import itertools
import re
from collections import Counter
from typing import NamedTuple

import jsonschema
import msgspec
import numpy as np
from msgspec import Struct

from llmserve import core
from tests.bench.soak.asks import Ask
from tests.bench.soak.reference import MEAN_TOLERANCE, TOLERANCE, Reference
from tests.bench.soak.replies import Choice, Reply

_COSINE = 0.999  # of two vectors of the same text
_UNDECIDED = "\ufffd"  # half of a character, where max_tokens cut it


class Wrong(Struct, frozen=True):
    """An answer that is not right, and why."""

    ask: Ask
    reason: str
    text: str = ""


class _Text(NamedTuple):
    """What the model said after a prompt. `ended`: and then it ended, or said `stop`."""

    prompt: bytes  # of a `core.Request`
    text: str
    ended: bool
    stop: str | None

    def is_beginning_of(self, other: "_Text") -> bool:
        """Whether the other one says all that this one does, and more."""
        has_end = self.ended or self.stop
        return not has_end and self.prompt == other.prompt and other.text.startswith(self.text)


class Judge:
    """Collects answers; `finish` has the last word on their texts."""

    def __init__(self) -> None:
        self.wrong: list[Wrong] = []
        self.num_judged: Counter[str] = Counter()  # answers, by how they were compared
        self.worst_gap = 0.0  # of the texts that were found right
        self._calm: dict[str, Reply] = {}
        self._texts: dict[_Text, Ask] = {}
        self._told: dict[bytes, list[tuple[Ask, Choice]]] = {}  # with those of a prompt's tokens

    def take(self, ask: Ask, reply: Reply, *, is_calm: bool = False) -> None:
        """An answer, or as much of it as came before the client left or the model crashed.

        `is_calm`: the server had nothing else to do; later answers must be the same.
        """
        if is_calm:
            assert ask.calm_key
            self._calm[ask.calm_key] = reply
        if reply.is_whole and (problem := self._problem(ask, reply)):
            text = " | ".join(choice.text for choice in reply.choices.values())
            self.wrong.append(Wrong(ask, problem, text))
            return
        for index, choice in reply.choices.items():
            if ask.prompts and choice.text:
                said = _said(ask, ask.prompts[index], choice)
                self.num_judged["greedy"] += 1
                self._texts.setdefault(said, ask)
                if ask.body.get("echo"):
                    self._told.setdefault(said.prompt, []).append((ask, choice))

    def finish(self, reference: Reference) -> None:
        """Let the model judge every different text once, in some 0.3 s each."""
        texts = sorted(self._texts, key=lambda said: said[:2])
        for said, following in itertools.pairwise([*texts, None]):
            assert said
            if following is None or not said.is_beginning_of(following):
                self._judge_text(reference, self._texts[said], said)
        for prompt in sorted(self._told):
            tokens = _tokens(reference, prompt)
            expected = reference.logprobs(tokens, 1)
            for ask, choice in self._told[prompt]:
                self.num_judged["log probabilities"] += 1
                if problem := _prompt_logprob_problem(choice, expected):
                    self.wrong.append(Wrong(ask, problem, choice.text))

    def troubles(self) -> list[str]:
        return [f"wrong: {w.ask.kind}, {w.ask.model}: {w.reason}: {w.text!r}" for w in self.wrong]

    # -- form -------------------------------------------------------------------------------

    def _problem(self, ask: Ask, reply: Reply) -> str | None:
        """What is wrong with a whole answer, without a look at the model."""
        if ask.kind == "embeddings":
            return self._vector_problem(ask, reply)
        if sorted(reply.choices) != list(range(ask.num_choices)):
            return f"{len(reply.choices)} choices instead of {ask.num_choices}"
        if reply.num_tokens is not None and reply.num_tokens > ask.max_tokens * ask.num_choices:
            return f"{reply.num_tokens} tokens, more than max_tokens"
        if ask.pattern or ask.schema:
            self.num_judged["constrained"] += 1
        for choice in reply.choices.values():
            if problem := _choice_problem(ask, choice):
                return problem
        return self._calm_problem(ask, reply) if ask.calm_key else None

    def _calm_problem(self, ask: Ask, reply: Reply) -> str | None:
        assert ask.calm_key
        self.num_judged["deterministic"] += 1
        expected = self._calm[ask.calm_key].choice(0).text
        if reply.choice(0).text != expected:
            return f"not the deterministic text, which is {expected!r}"
        return None

    def _vector_problem(self, ask: Ask, reply: Reply) -> str | None:
        assert ask.calm_key
        self.num_judged["vectors"] += 1
        expected = np.array(self._calm[ask.calm_key].vectors)
        vectors = np.array(reply.vectors)
        if vectors.shape != expected.shape or len(vectors) != ask.num_choices:
            return f"vectors of shape {vectors.shape} instead of {expected.shape}"
        cosines = (vectors * expected).sum(axis=1)  # they have length 1
        return None if cosines.min() > _COSINE else f"cosines {cosines.round(4).tolist()}"

    # -- content ----------------------------------------------------------------------------

    def _judge_text(self, reference: Reference, ask: Ask, said: _Text) -> None:
        tokens = _tokens(reference, said.prompt)
        verdict = reference.judge(tokens, said.text + (said.stop or ""), ended=said.ended)
        if said.stop and verdict.worst > TOLERANCE:  # or it ended by itself just before
            verdict = min(verdict, reference.judge(tokens, said.text, ended=True))
        self.num_judged["different greedy"] += 1
        if verdict.is_right:
            self.worst_gap = max(self.worst_gap, verdict.worst)
        else:
            reason = f"gaps of {verdict.worst:.2f} at most, {verdict.mean:.2f} on average"
            self.wrong.append(Wrong(ask, reason, said.text))


def _said(ask: Ask, prompt: core.Request, choice: Choice) -> _Text:
    text = choice.text
    if ask.body.get("echo"):
        assert prompt.prompt is not None
        text = text[len(prompt.prompt) :]
    has_ended = choice.finish == "stop"
    stop = ask.stop if has_ended else None
    return _Text(msgspec.json.encode(prompt), text.rstrip(_UNDECIDED), has_ended and not stop, stop)


def _tokens(reference: Reference, prompt: bytes) -> list[int]:
    return reference.encode(msgspec.json.decode(prompt, type=core.Request))


def _choice_problem(ask: Ask, choice: Choice) -> str | None:
    if choice.finish not in ("stop", "length"):
        return f"finish reason {choice.finish!r}"
    if ask.stop and ask.stop in choice.text:
        return f"the stop string {ask.stop!r} is shown"
    if choice.finish == "stop" and ask.pattern and not re.fullmatch(ask.pattern, choice.text):
        return f"does not match {ask.pattern}"
    if choice.finish == "stop" and ask.schema:
        try:
            jsonschema.validate(msgspec.json.decode(choice.text), ask.schema)
        except (msgspec.DecodeError, jsonschema.ValidationError) as error:
            return f"not of its schema: {str(error).splitlines()[0]}"
    return _logprob_problem(choice) if choice.logprobs and not ask.body.get("echo") else None


def _logprob_problem(choice: Choice) -> str | None:
    """Of greedy tokens: each is the most likely one, and together they are the text."""
    if "".join(token for token, _, _ in choice.logprobs) != choice.text:
        return "the tokens with log probabilities are not the text"
    if any(value != best for _, value, best in choice.logprobs):
        return "a greedy token is not the most likely one"
    return None


def _prompt_logprob_problem(choice: Choice, expected: list[float]) -> str | None:
    """Those of the prompt's tokens, of which the first one has none."""
    told = [value for _, value, _ in choice.logprobs[1 : len(expected) + 1]]
    if len(told) != len(expected) or None in told:
        return f"{len(told)} log probabilities of {len(expected)} tokens"
    difference = np.abs(np.array(told, dtype=float) - np.array(expected))
    if difference.max() > 2 * TOLERANCE or difference.mean() > MEAN_TOLERANCE:
        return f"log probabilities differ by {difference.max():.2f}, {difference.mean():.2f} mean"
    return None
