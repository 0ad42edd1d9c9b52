"""Lies about a model's vocabulary: lists of the wrong lengths, types and contents."""

from random import Random

import gguf as reference

from tests.fuzz.ggufs.dissected import Model, Pair, strings_or_numbers
from tests.fuzz.ggufs.settings import any_number
from tests.gguf.raw_gguf import ARRAY, BOOL, FLOAT32, INT32, STRING, UINT8, UINT32
from tests.gguf.raw_gguf import string as encoded

_NAMES = ("tokens", "scores", "token_type", "merges")
_KINDS = (*b"llama gpt2 bert t5 rwkv plamo2 none no_vocab x".split(), b"")
_PRE = (*b"default llama-bpe qwen2 deepseek-llm gemma4 smollm".split(), b"", b"x" * 999)
_SPECIAL = (
    b"bos eos eot eom unknown seperator padding cls mask prefix suffix middle fim_pre fim_suf"
    b" fim_mid fim_pad fim_rep fim_sep"
).split()
_LONG = b"x" * 70_000
_STRINGS = (*b"a <0x <0x0A> <0xZZ>".split(), b"", b" ", b"\n", b"\0", b"\xff", b"\xf0\x9f")
_TEMPLATES = (
    b"",
    b"{%",
    b"{{ x.y.z }}",
    b"\xff\xfe",
    b"{% for i in range(10**9) %}x{% endfor %}",
    b"{{ ''.__class__.__mro__ }}",
    b"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    b"{{ 'x' * 10**10 }}",
)


def with_bpe(model: Model) -> Model:
    """The same model over a byte-pair vocabulary of the same size."""
    size = len(next(p for p in model.pairs if p.key == b"tokenizer.ggml.tokens").elements())
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 324))][:256]
    words = [a + b for a in letters for b in letters][: size - len(letters)]
    merges = [f"{word[0]} {word[1]}" for word in words]
    types = [reference.TokenType.NORMAL] * size
    return model.put(
        Pair(b"tokenizer.ggml.model", STRING, encoded("gpt2")),
        Pair(b"tokenizer.ggml.pre", STRING, encoded("default")),
        strings_or_numbers(b"tokenizer.ggml.tokens", STRING, [t.encode() for t in letters + words]),
        strings_or_numbers(b"tokenizer.ggml.merges", STRING, [m.encode() for m in merges]),
        strings_or_numbers(b"tokenizer.ggml.token_type", INT32, [int(t) for t in types]),
    )


def _list(random: Random, model: Model) -> Pair:
    keys = [f"tokenizer.ggml.{name}".encode() for name in _NAMES]
    return random.choice([each for each in model.pairs if each.key in keys])


def a_list_of_another_length(random: Random, model: Model) -> Model:
    old = _list(random, model)
    items = old.elements()
    cut = random.choice((0, 1, len(items) // 2, len(items) - 1))
    more = random.choice(([], items[:1], items, items * 3))
    return model.put(old.with_elements(random.choice((items[:cut], items + more))))


def a_list_of_another_type(random: Random, model: Model) -> Model:
    old = _list(random, model)
    count = len(old.elements())
    return model.put(
        random.choice(
            (
                strings_or_numbers(old.key, INT32, [1] * count),
                strings_or_numbers(old.key, UINT8, [1] * count),
                strings_or_numbers(old.key, FLOAT32, [1.5] * count),
                strings_or_numbers(old.key, STRING, [b"a"] * count),
                Pair(old.key, STRING, encoded("a")),
                Pair(old.key, ARRAY, b"\7\0\0\0" + count.to_bytes(8, "little") + b"\1" * count),
            )
        )
    )


def strange_words(random: Random, model: Model) -> Model:
    """Some, or all, tokens or merges are empty, no text, twice there or far too long."""
    names = [name for name in ("tokens", "merges") if model.has(f"tokenizer.ggml.{name}")]
    key = f"tokenizer.ggml.{random.choice(names)}".encode()
    old = next(each for each in model.pairs if each.key == key)
    items = old.elements()
    for _ in range(random.choice((1, 3, len(items)))):
        items[random.randrange(len(items))] = random.choice(
            (*_STRINGS, random.choice(items), random.randbytes(4))
        )
    if random.random() < 0.2:
        items[random.randrange(len(items))] = _LONG
    return model.put(old.with_elements(items))


def strange_scores(random: Random, model: Model) -> Model:
    count = len(next(p for p in model.pairs if p.key == b"tokenizer.ggml.tokens").elements())
    values = (float("nan"), float("inf"), float("-inf"), 0.0, 1e38, -1.0)
    scores = [random.choice(values) for _ in range(count)]
    return model.put(strings_or_numbers(b"tokenizer.ggml.scores", FLOAT32, scores))


def strange_token_types(random: Random, model: Model) -> Model:
    count = len(next(p for p in model.pairs if p.key == b"tokenizer.ggml.tokens").elements())
    values = random.choice(((0,), (6,), (3,), (-1, 7, 99, 2**31 - 1), range(-1, 9)))
    types = [random.choice(values) for _ in range(count)]
    return model.put(strings_or_numbers(b"tokenizer.ggml.token_type", INT32, types))


def special_tokens_that_are_none(random: Random, model: Model) -> Model:
    for _ in range(random.randrange(1, 4)):
        key = b"tokenizer.ggml." + random.choice(_SPECIAL) + b"_token_id"
        model = model.put(Pair(key, UINT32, any_number(random, UINT32)))
    return model


def another_tokenizer(random: Random, model: Model) -> Model:
    kind = Pair(b"tokenizer.ggml.model", STRING, encoded(random.choice(_KINDS)))
    return model.put(kind, Pair(b"tokenizer.ggml.pre", STRING, encoded(random.choice(_PRE))))


def more_of_a_tokenizer(random: Random, model: Model) -> Model:
    return model.put(
        random.choice(
            (
                strings_or_numbers(
                    b"tokenizer.ggml.precompiled_charsmap",
                    UINT8,
                    list(random.randbytes(random.choice((0, 3, 4, 64)))),
                ),
                Pair(b"tokenizer.ggml.add_bos_token", BOOL, b"\1"),
                Pair(b"tokenizer.ggml.add_eos_token", BOOL, b"\1"),
                Pair(b"tokenizer.ggml.add_sep_token", BOOL, b"\1"),
                Pair(b"tokenizer.ggml.add_bos_token", STRING, encoded("yes")),
                Pair(b"tokenizer.ggml.remove_extra_whitespaces", BOOL, b"\1"),
                Pair(b"tokenizer.ggml.eos_token_ids", UINT32, b"\1\0\0\0"),
                strings_or_numbers(b"tokenizer.ggml.eos_token_ids", INT32, [1, 2**31 - 1, -1]),
                Pair(b"tokenizer.ggml.pre", UINT32, b"\1\0\0\0"),
            )
        )
    )


def another_template(random: Random, model: Model) -> Model:
    text = random.choice(_TEMPLATES)
    return model.put(Pair(b"tokenizer.chat_template", STRING, encoded(text)))


CHANGES = (
    a_list_of_another_length,
    a_list_of_another_type,
    strange_words,
    strange_scores,
    strange_token_types,
    special_tokens_that_are_none,
    another_tokenizer,
    more_of_a_tokenizer,
    another_template,
)
