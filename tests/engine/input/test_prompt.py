"""From a request to tokens: modes, the template, BOS, and refusals."""

import logging
from typing import Any

import msgspec
import pytest

from llmserve.chat.chat_format import ChatStyle
from llmserve.chat.template import ChatTemplate
from llmserve.core import Message, Mode, Request
from llmserve.engine.input import prompt
from llmserve.engine.runtime import InfillTokens, ModelInfo
from llmserve.errors import InvalidRequestError, LlmserveError, TooLargeError
from tests.fakes import TEMPLATE, FakeRuntime

MESSAGES = (Message("system", "S"), Message("user", "U"))


class BosRuntime(FakeRuntime):
    """A model whose tokenizer puts BOS (token 1, written <s>) in front where it is asked to."""

    def __init__(self, chat_template: str | None = "<s>" + TEMPLATE) -> None:
        super().__init__(chat_template=chat_template)
        self.info = ModelInfo(
            description="fake",
            vocab_size=257,
            eog_tokens=frozenset([256]),
            bos_text="<s>",
            eos_text="",
            chat_template=chat_template,
        )

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        ids = list(text.replace("<s>", "\x01").encode())
        return [1, *ids] if add_special else ids


def encode(
    request: Request, runtime: FakeRuntime | None = None, default_mode: Mode | None = None
) -> list[int]:
    runtime = runtime or FakeRuntime()
    return prompt.encode(request, runtime, prompt.load_style(runtime.info), default_mode).tokens


# -- the text -----------------------------------------------------------------------------------


def test_the_text_of_each_mode() -> None:
    style = ChatStyle(ChatTemplate(TEMPLATE, bos_text="", eos_text=""))
    bare = Request(prompt="Hi")
    with_system = Request(prompt="Hi", system="S")
    chat = Request(messages=MESSAGES)
    assert prompt.build_text(bare, Mode.COMPLETION, None) == "Hi"
    assert prompt.build_text(bare, Mode.INSTRUCT, style) == "<user>Hi\n<assistant>"
    text = "<system>S\n<user>Hi\n<assistant>"
    assert prompt.build_text(with_system, Mode.INSTRUCT, style) == text
    assert prompt.build_text(chat, Mode.CHAT, style) == "<system>S\n<user>U\n<assistant>"


def test_bos_comes_once() -> None:
    """From the tokenizer for bare text, from the template where it writes one, never from both."""
    completion = Request(prompt="x", mode=Mode.COMPLETION)
    assert encode(completion, BosRuntime()) == [1, *b"x"]
    assert encode(Request(prompt="x"), BosRuntime()) == [1, *b"<user>x\n<assistant>"]
    without = BosRuntime(chat_template=TEMPLATE)
    assert encode(Request(prompt="x"), without) == [1, *b"<user>x\n<assistant>"]


def test_a_bos_that_the_user_writes_is_theirs() -> None:
    completion = Request(prompt="<s>x", mode=Mode.COMPLETION)
    assert encode(completion, BosRuntime()) == [1, 1, *b"x"]


def test_tokens_are_taken_as_they_are() -> None:
    for default_mode in (None, *Mode):
        request = Request(prompt_tokens=(7, 1, 256, 0))
        assert encode(request, BosRuntime(), default_mode) == [7, 1, 256, 0]
    request = Request(prompt_tokens=(7,), mode=Mode.COMPLETION)
    assert encode(request, BosRuntime(chat_template=None)) == [7]


# -- refusals -----------------------------------------------------------------------------------


def test_an_empty_prompt() -> None:
    with pytest.raises(InvalidRequestError, match="prompt is empty") as caught:
        encode(Request(prompt="", mode=Mode.COMPLETION))
    assert caught.value.param == "prompt"
    # With a BOS the model has something to continue.
    assert encode(Request(prompt="", mode=Mode.COMPLETION), BosRuntime()) == [1]


def test_a_prompt_that_leaves_no_room() -> None:
    runtime = FakeRuntime(num_cells=100, context_length=50)
    assert len(encode(Request(prompt="x" * 49, mode=Mode.COMPLETION), runtime)) == 49
    with pytest.raises(
        TooLargeError, match=r"prompt has (at least )?50 tokens; .* holds 50"
    ) as caught:
        encode(Request(prompt="x" * 50, mode=Mode.COMPLETION), runtime)
    assert caught.value.param == "prompt"
    with pytest.raises(TooLargeError, match="messages has") as caught:
        encode(Request(messages=(Message("user", "x" * 50),)), runtime)
    assert caught.value.param == "messages"


class FourByteTokens(FakeRuntime):
    """One token for every four bytes; NUL has none. Refuses to tokenize what `limit` excludes."""

    def __init__(self, *, num_cells: int, max_text_len: int) -> None:
        super().__init__(num_cells=num_cells)
        self.info = msgspec.structs.replace(self.info, max_token_bytes=4, lost_bytes=b"\0")
        self.max_text_len = max_text_len

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        assert len(text) <= self.max_text_len, "tokenized what cannot fit"
        return list(text.encode().replace(b"\0", b""))[::4]


def test_a_hopeless_prompt_is_refused_before_it_is_tokenized() -> None:
    runtime = FourByteTokens(num_cells=100, max_text_len=400)
    assert len(encode(Request(prompt="x" * 396, mode=Mode.COMPLETION), runtime)) == 99
    for text, least in [("x" * 397, 100), ("é" * 1000, 500), ("😀" * 100, 100), ("x" * 4000, 1000)]:
        with pytest.raises(TooLargeError, match=rf"has at least {least} tokens; .* holds 100"):
            encode(Request(prompt=text, mode=Mode.COMPLETION), runtime)
    with pytest.raises(TooLargeError, match="messages has at least") as caught:
        encode(Request(messages=(Message("user", "x" * 400),)), runtime)
    assert caught.value.param == "messages"
    with pytest.raises(InvalidRequestError, match="not valid Unicode"):
        encode(Request(prompt="x" * 4000 + "\ud800", mode=Mode.COMPLETION), runtime)


def test_what_may_have_no_token_does_not_count() -> None:
    runtime = FourByteTokens(num_cells=100, max_text_len=5000)
    text = "\0" * 4000 + "x" * 396
    assert len(encode(Request(prompt=text, mode=Mode.COMPLETION), runtime)) == 99


def test_a_text_without_bound_is_refused_by_its_beginning() -> None:
    runtime = FourByteTokens(num_cells=4096, max_text_len=33_000)
    runtime.info = msgspec.structs.replace(runtime.info, max_token_bytes=None)
    with pytest.raises(TooLargeError, match=r"at least 8192 tokens; .* holds 4096"):
        encode(Request(prompt="x" * 1_000_000, mode=Mode.COMPLETION), runtime)


def test_a_bare_text_is_bounded() -> None:
    runtime = FourByteTokens(num_cells=100, max_text_len=prompt.MAX_TEXT_LEN)
    text = "x" * prompt.MAX_TEXT_LEN
    assert len(prompt.tokenize(text, runtime, add_special=False)) == len(text) // 4
    with pytest.raises(TooLargeError, match="the text has 2097153 characters; give at most"):
        prompt.tokenize(text + "x", runtime, add_special=False)


@pytest.mark.parametrize(
    ("tokens", "param", "words"),
    [
        ((), "prompt", "prompt is empty"),
        ((1, 2, 257), "prompt.2", "token 257 at index 2 .* of 257 tokens"),
        ((-1, 2), "prompt.0", "token -1 at index 0"),
        ((1, 1 << 40), "prompt.1", "token 1099511627776 at index 1"),
    ],
)
def test_tokens_that_the_model_does_not_have(
    tokens: tuple[int, ...], param: str, words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        encode(Request(prompt_tokens=tokens))
    assert caught.value.param == param


INFILL = InfillTokens(prefix=1, suffix=2, middle=3)


@pytest.mark.parametrize(
    "fields",
    [{"prompt": "ab"}, {"prompt_tokens": (97, 98)}],
)
def test_what_surrounds_the_middle(fields: dict[str, Any]) -> None:
    request = Request(**{"mode": Mode.COMPLETION, **fields}, suffix="cd")
    assert encode(request, FakeRuntime(infill=INFILL)) == [1, 97, 98, 2, 99, 100, 3]


def test_bos_comes_before_the_prefix_and_only_there() -> None:
    runtime = BosRuntime()
    runtime.info = msgspec.structs.replace(runtime.info, adds_bos=True, infill=INFILL)
    request = Request(prompt="", suffix="b", mode=Mode.COMPLETION)
    assert encode(request, runtime) == [1, 1, 2, 98, 3]


@pytest.mark.parametrize(
    ("fields", "infill", "param", "words"),
    [
        ({"suffix": "b"}, None, "suffix", "no tokens for that"),
        ({"suffix": "\ud800"}, INFILL, "suffix", "half of a surrogate"),
        ({"suffix": "x" * 300}, INFILL, "suffix", "at least 300 tokens"),
        ({"prompt": "x" * 100, "suffix": "x" * 153}, INFILL, "prompt", "256 tokens"),
    ],
)
def test_a_suffix_that_cannot_be(
    fields: dict[str, Any], infill: InfillTokens | None, param: str, words: str
) -> None:
    request = Request(**{"prompt": "a", "mode": Mode.COMPLETION, **fields})
    with pytest.raises(LlmserveError, match=words) as caught:
        encode(request, FakeRuntime(infill=infill))
    assert caught.value.param == param


def test_too_many_tokens() -> None:
    runtime = FakeRuntime(num_cells=100, context_length=50)
    assert len(encode(Request(prompt_tokens=(1,) * 49), runtime)) == 49
    with pytest.raises(TooLargeError, match="prompt has 50 tokens"):
        encode(Request(prompt_tokens=(1,) * 50), runtime)


@pytest.mark.parametrize(
    "request_",
    [
        Request(prompt_tokens=(1,), mode=Mode.INSTRUCT),
        Request(prompt_tokens=(1,), mode=Mode.CHAT),
        Request(prompt_tokens=(1,), system="s"),
    ],
)
def test_tokens_go_with_completion_only(request_: Request) -> None:
    with pytest.raises(InvalidRequestError, match="mode completion only") as caught:
        encode(request_)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (Request(prompt="a\ud800", mode=Mode.COMPLETION), "prompt"),
        (Request(prompt="\udcff"), "prompt"),
        (Request(prompt="x", system="\udcff"), "prompt"),
        (Request(messages=(Message("user", "\udfff"),)), "messages"),
    ],
)
def test_half_a_surrogate_pair_is_no_text(request_: Request, param: str) -> None:
    """A shell's argument with broken bytes, or a careless JSON escape, can hold one."""
    with pytest.raises(InvalidRequestError, match="not valid Unicode") as caught:
        encode(request_)
    assert caught.value.param == param


# -- a template that is broken ------------------------------------------------------------------


def test_a_model_without_a_template() -> None:
    assert prompt.load_style(FakeRuntime(chat_template=None).info) is None
    assert prompt.load_style(FakeRuntime(chat_template="").info) is None


def test_a_broken_template_leaves_completion(caplog: pytest.LogCaptureFixture) -> None:
    runtime = FakeRuntime(chat_template="{% if %}")
    with caplog.at_level(logging.WARNING):
        style = prompt.load_style(runtime.info)
    assert "chat template is broken" in caplog.text
    completion = Request(prompt="x", mode=Mode.COMPLETION)
    assert prompt.encode(completion, runtime, style, None).tokens == [*b"x"]
    # Not quietly completed: the model was made for instructions.
    for request in (Request(prompt="x"), Request(messages=MESSAGES)):
        with pytest.raises(InvalidRequestError, match="use mode completion"):
            prompt.encode(request, runtime, style, None)
