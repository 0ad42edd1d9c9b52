"""What is asked in a soak: requests of every kind, drawn from a seed, and what is known of each.

Most prompts are lists of words, told three times, and then a few words of one: the model goes on
with the words that follow, and an answer that belongs to other words is far from the best. Lists
are few and long, so that their beginnings are shared, parked, restored and evicted; and prompts
come again and again, so that the model has to judge few different answers.
"""

import random
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from llmserve import core
from tests.bench.workload import prompts, short_texts

WORDS = [
    "violin", "lantern", "compass", "teapot", "ladder", "ribbon", "hammer", "kettle", "mirror",
    "basket", "saddle", "anchor", "candle", "pillow", "whistle", "bucket", "river", "garden",
    "window", "bottle", "market", "pencil", "dragon", "forest", "island", "orange", "button",
    "castle", "doctor", "engine", "father", "guitar", "honey", "insect", "jacket", "kitchen",
    "lemon", "monkey", "needle", "office",
]  # fmt: skip
STAYS, TAKE_TURNS = "stays", ("red", "blue")  # models: one always loaded, one of two
NUM_LISTS = 8
NUM_CHATS = 24
NUM_CALM = 6  # different requests of each sort whose answers are known from before
_LEAVING = 0.12  # share of requests whose client goes away
_QUESTIONS = ("Name three colours.", "What is bread made of?", "Why does it rain?", "Say hello.")

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
        "colour": {"enum": ["red", "green", "blue"]},
        "likes": {"type": "array", "items": {"enum": ["tea", "milk"]}, "maxItems": 2},
    },
    "required": ["name", "age", "colour", "likes"],
    "additionalProperties": False,
}
_DATE = "[0-9]{4}-[0-9]{2}-[0-9]{2}"


class Leave(Struct, frozen=True):
    """When the client goes away: after so long, or after so many pieces of a stream."""

    after_s: float | None = None
    after_pieces: int | None = None


class Ask(Struct, kw_only=True):
    """One request. `prompts`: what each choice continues, where its greedy text can be judged."""

    kind: str
    route: str
    body: dict[str, Any]
    num_choices: int = 1
    max_tokens: int = 0  # of each choice
    prompts: list[core.Request] = []
    stop: str | None = None
    schema: dict[str, Any] | None = None  # the text is JSON of it
    pattern: str | None = None  # the text matches it
    calm_key: str | None = None  # the answer is that of this request when nobody else was there
    leave: Leave | None = None

    @property
    def model(self) -> str:
        return str(self.body["model"])

    @property
    def is_stream(self) -> bool:
        return bool(self.body.get("stream"))


class Workload:
    """The requests of a seed, by number. `models` are names of the same file; the first one stays
    loaded and embeds, the others take turns.
    """

    def __init__(self, seed: int, models: list[str]) -> None:
        self._seed = seed
        self._models = models
        rng = random.Random(seed)
        self._lists = [rng.sample(WORDS, 24 + 2 * i) for i in range(NUM_LISTS)]

    def ask(self, number: int) -> Ask:
        rng = random.Random(f"{self._seed}/{number}")
        make = rng.choices(_KINDS, _WEIGHTS)[0]
        ask = make(self, rng)
        ask.body["model"] = (
            self._models[0] if ask.kind == "embeddings" else self._model(number, rng)
        )
        if ask.calm_key is None and rng.random() < _LEAVING:
            ask.leave = _leave(rng, is_stream=ask.is_stream)
        return ask

    def calm(self) -> list[Ask]:
        """Each request that has a `calm_key`, once, for the model that stays."""
        asks = [self._deterministic(i) for i in range(2 * NUM_CALM)]
        asks += [self._embedding(i) for i in range(NUM_CALM)]
        for ask in asks:
            ask.body["model"] = self._models[0]
        return asks

    def _model(self, number: int, rng: random.Random) -> str:
        """The others have their time one after the other, so that they are swapped."""
        stays, *others = self._models
        if not others or rng.random() < 0.4:
            return stays
        return others[number // 12 % len(others)] if rng.random() < 0.85 else rng.choice(others)

    # -- prompts ----------------------------------------------------------------------------

    def _copying(self, rng: random.Random) -> str:
        """A list three times, and the beginning of its rest."""
        number = rng.randrange(NUM_LISTS)
        words = self._lists[number]
        start = rng.randrange(0, len(words) - 12, 4)
        told = "\n".join([" ".join(words)] * 3)
        return f"List {number}.\n{told}\n{' '.join(words[start : start + 3])}"

    def _new(self, rng: random.Random) -> str:
        """What nobody has asked before, or a list."""
        return (
            prompts(1, salt=rng.getrandbits(40))[0] if rng.random() < 0.25 else self._copying(rng)
        )

    def _messages(self, rng: random.Random) -> list[dict[str, str]]:
        """A question, or a conversation in which the assistant repeats words."""
        if rng.random() < 0.2:
            return [{"role": "user", "content": rng.choice(_QUESTIONS)}]
        rng = random.Random(f"{self._seed}/chat/{rng.randrange(NUM_CHATS)}")
        words = [" ".join(rng.sample(self._lists[rng.randrange(NUM_LISTS)], 8)) for _ in range(3)]
        turns = []
        for line in words:
            turns += [{"role": "user", "content": f"Repeat: {line}"}]
            turns += [{"role": "assistant", "content": line}]
        return turns[:-1]

    # -- kinds ------------------------------------------------------------------------------

    def native(self, rng: random.Random) -> Ask:
        prompt, size = self._new(rng), rng.choice((8, 16, 32))
        body: dict[str, Any] = {"prompt": prompt, "mode": "completion", "details": True}
        body |= {"stream": rng.random() < 0.5, "parameters": _greedy(size)}
        if rng.random() < 0.1:
            body["priority"] = "batch"
        stop = rng.choice(WORDS) if rng.random() < 0.2 else None
        if stop:
            body["parameters"]["stop"] = [stop]
        return Ask(
            kind="inference", route="/inference", body=body, max_tokens=size, stop=stop,
            prompts=[_completion(prompt)],
        )  # fmt: skip

    def native_chat(self, rng: random.Random) -> Ask:
        messages, size = self._messages(rng), rng.choice((16, 32))
        body = {"messages": messages, "details": True, "stream": rng.random() < 0.5}
        return Ask(
            kind="inference", route="/inference", body=body | {"parameters": _greedy(size)},
            max_tokens=size, prompts=[_chat(messages)],
        )  # fmt: skip

    def deterministic(self, rng: random.Random) -> Ask:
        return self._deterministic(rng.randrange(2 * NUM_CALM))

    def _deterministic(self, number: int) -> Ask:
        """Every other one is sampled: with its seed that is the same text too."""
        rng = random.Random(f"{self._seed}/calm/{number}")
        prompt = self._copying(rng)
        body = {"prompt": prompt, "mode": "completion", "details": True, "deterministic": True}
        is_greedy = number % 2 == 0
        parameters = _greedy(12) if is_greedy else {"temperature": 0.9, "seed": 7, "max_tokens": 12}
        return Ask(
            kind="deterministic", route="/inference", body=body | {"parameters": parameters},
            max_tokens=12, calm_key=f"text {number}",
            prompts=[_completion(prompt)] if is_greedy else [],
        )  # fmt: skip

    def completions(self, rng: random.Random) -> Ask:
        texts = [self._new(rng) for _ in range(rng.choice((1, 1, 1, 2)))]
        size, n = rng.choice((8, 16, 24)), rng.choice((1, 1, 1, 2))
        is_told = rng.random() < 0.15  # with the prompt's own log probabilities
        body: dict[str, Any] = {
            "prompt": texts if len(texts) > 1 else texts[0], "max_tokens": size, "n": n,
            "temperature": 0, "stream": not is_told and rng.random() < 0.5,
        }  # fmt: skip
        if is_told:
            body |= {"echo": True, "logprobs": 2}
        elif body["stream"]:
            body["stream_options"] = {"include_usage": True}
        return Ask(
            kind="completions", route="/v1/completions", body=body, max_tokens=size,
            num_choices=n * len(texts),
            prompts=[_completion(text) for text in texts for _ in range(n)],
        )  # fmt: skip

    def chat(self, rng: random.Random) -> Ask:
        messages, size = self._messages(rng), rng.choice((16, 32))
        n = rng.choice((1, 1, 1, 2, 3))
        body: dict[str, Any] = {"messages": messages, "max_tokens": size, "temperature": 0, "n": n}
        body["stream"] = rng.random() < 0.6
        if rng.random() < 0.3:
            body |= {"logprobs": True, "top_logprobs": 2}
        return Ask(
            kind="chat", route="/v1/chat/completions", body=body, max_tokens=size, num_choices=n,
            prompts=[_chat(messages)] * n,
        )  # fmt: skip

    def responses(self, rng: random.Random) -> Ask:
        messages, size = self._messages(rng), rng.choice((16, 32))
        body = {"input": messages, "max_output_tokens": size, "temperature": 0}
        body["stream"] = rng.random() < 0.5
        return Ask(
            kind="responses", route="/v1/responses", body=body, max_tokens=size,
            prompts=[_chat(messages)],
        )  # fmt: skip

    def constrained(self, rng: random.Random) -> Ask:
        prompt = f"{rng.choice(WORDS)} {rng.random():.3f}: a person as JSON:"
        body: dict[str, Any] = {"stream": rng.random() < 0.5}
        form = {"type": "json_schema", "json_schema": {"name": "person", "schema": _PERSON}}
        ask = Ask(kind="constrained", route="/inference", body=body, max_tokens=120)
        match rng.randrange(4):
            case 0:
                body |= {"prompt": prompt, "response_format": form, "details": True}
                body["parameters"] = {"temperature": 0.8, "max_tokens": 120}
                ask.schema = _PERSON
            case 1:
                ask.route = "/v1/chat/completions"
                body["messages"] = [{"role": "user", "content": prompt}]
                body |= {"response_format": form, "max_tokens": 120}
                ask.schema = _PERSON
            case 2:
                body |= {"prompt": "Today is", "details": True, "mode": "completion"}
                body["response_format"] = {"type": "regex", "regex": _DATE}
                body["parameters"] = {"temperature": 1, "max_tokens": 40}
                ask.pattern = _DATE
            case _:
                ask.route = "/v1/completions"
                words = rng.sample(WORDS, 4)
                body |= {"prompt": prompt, "structured_outputs": {"choice": words}}
                ask.max_tokens = body["max_tokens"] = 16
                ask.pattern = "|".join(words)
        return ask

    def sampled(self, rng: random.Random) -> Ask:
        size = rng.choice((16, 32))
        body = {"prompt": self._new(rng), "max_tokens": size, "temperature": 0.8, "top_p": 0.95}
        body |= {"stream": rng.random() < 0.7, "presence_penalty": 0.5}
        return Ask(kind="sampled", route="/v1/completions", body=body, max_tokens=size)

    def embeddings(self, rng: random.Random) -> Ask:
        return self._embedding(rng.randrange(NUM_CALM))

    def _embedding(self, number: int) -> Ask:
        texts = short_texts(4, salt=self._seed * 1000 + number)
        return Ask(
            kind="embeddings", route="/v1/embeddings", body={"input": texts},
            calm_key=f"vectors {number}", num_choices=4,
        )  # fmt: skip

    def long(self, rng: random.Random) -> Ask:
        """Some 800 tokens that nobody has asked, and a list."""
        text = "".join(prompts(20, salt=rng.getrandbits(40))) + self._copying(rng)
        body = {"prompt": text, "max_tokens": 8, "temperature": 0, "stream": True}
        return Ask(
            kind="long", route="/v1/completions", body=body, max_tokens=8,
            prompts=[_completion(text)],
        )  # fmt: skip


_Make = Callable[[Workload, random.Random], Ask]
_MIX: dict[_Make, int] = {
    Workload.native: 20,
    Workload.native_chat: 8,
    Workload.deterministic: 8,
    Workload.completions: 18,
    Workload.chat: 16,
    Workload.responses: 5,
    Workload.constrained: 12,
    Workload.sampled: 6,
    Workload.embeddings: 5,
    Workload.long: 2,
}
_KINDS, _WEIGHTS = list(_MIX), list(_MIX.values())


def _greedy(max_tokens: int) -> dict[str, Any]:
    return {"temperature": 0, "max_tokens": max_tokens}


def _completion(text: str) -> core.Request:
    return core.Request(prompt=text, mode=core.Mode.COMPLETION)


def _chat(messages: list[dict[str, str]]) -> core.Request:
    turns = tuple(core.Message(turn["role"], turn["content"]) for turn in messages)
    return core.Request(messages=turns, mode=core.Mode.CHAT)


def _leave(rng: random.Random, *, is_stream: bool) -> Leave:
    if is_stream and rng.random() < 0.6:
        return Leave(after_pieces=rng.randint(1, 6))
    return Leave(after_s=rng.expovariate(2))
