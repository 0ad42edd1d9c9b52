"""GBNF through llguidance, against a slow matcher that knows nothing but the grammar's meaning."""

import functools
import json
import re
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from llmserve.engine.structured.gbnf import (
    MAX_RECURSIVE_SYMBOLS,
    MAX_RULES,
    MAX_SYMBOLS,
    GrammarError,
    syntax_of,
    to_lark,
)
from tests.fakes import EOS, FakeRuntime

ALPHABET = "ab\né"
TEXTS = ["".join(letters) for n in range(4) for letters in product(ALPHABET, repeat=n)]


@functools.cache
def tokenizer() -> LLTokenizer:
    return FakeRuntime().grammar_tokenizer()


def matcher_of(grammar: str) -> LLMatcher:
    lark = LLMatcher.grammar_from_lark(to_lark(grammar))
    return LLMatcher(tokenizer(), lark, log_level=0)


def takes(matcher: LLMatcher, text: str) -> bool:
    """Whether a fresh matcher can write all of `text`, and end there."""
    own = matcher.deep_copy()
    return all(own.consume_token(byte) for byte in text.encode()) and own.is_accepting()


# -- the same language ---------------------------------------------------------------------------
#
# A grammar is {name: node}; a node is one of
#   ("text", str), ("set", negated, str), ("any",), ("rule", name), ("all", nodes), ("one", nodes),
#   ("repeat", node, least, most or None)

Node = tuple[Any, ...]
Ends = dict[tuple[str, int], frozenset[int]]


def ends_of(node: Node, text: str, start: int, known: Ends) -> frozenset[int]:
    """Where a match from `start` can end, as far as that of rules is known."""
    match node:
        case ("text", str(word)):
            return frozenset([start + len(word)] if text.startswith(word, start) else [])
        case ("set", bool(negated), str(letters)):
            is_match = start < len(text) and (text[start] in letters) is not negated
            return frozenset([start + 1] if is_match else [])
        case ("any",):
            return frozenset([start + 1] if start < len(text) else [])
        case ("rule", str(name)):
            return known[name, start]
        case ("one", list(nodes)):
            return frozenset().union(*(ends_of(inner, text, start, known) for inner in nodes))
        case ("all", list(nodes)):
            ends = frozenset([start])
            for inner in nodes:
                ends = frozenset().union(*(ends_of(inner, text, at, known) for at in ends))
            return ends
        case ("repeat", inner, int(least), most):
            ends = found = frozenset([start]) if least == 0 else frozenset()
            reached = frozenset([start])
            for count in range(1, (most or len(text) + least) + 1):
                reached = frozenset().union(*(ends_of(inner, text, at, known) for at in reached))
                if count >= least:
                    found |= reached
            return found | ends
    raise AssertionError(node)


def matches(grammar: dict[str, Node], text: str) -> bool:
    """By a fixed point, so that any recursion has a meaning."""
    places = [(name, at) for name in grammar for at in range(len(text) + 1)]
    known: Ends = dict.fromkeys(places, frozenset())
    while True:
        better = {(name, at): ends_of(grammar[name], text, at, known) for name, at in places}
        if better == known:
            return len(text) in known["root", 0]
        known = better


def written(node: Node, *, nested: bool = True) -> str:
    match node:
        case ("text", str(word)):
            return '"' + word.replace("\n", "\\n").replace("é", "\\u00e9") + '"'
        case ("set", bool(negated), str(letters)):
            return f"[{'^' * negated}{letters}]".replace("\n", "\\x0A")
        case ("any",):
            return "."
        case ("rule", str(name)):
            return name
        case ("all", list(nodes)):
            text = " ".join(map(written, nodes))
        case ("one", list(nodes)):
            text = " |\n ".join(written(inner, nested=False) for inner in nodes)
            nested = True
        case ("repeat", inner, least, most):
            signs = {(0, None): "*", (1, None): "+", (0, 1): "?"}
            count = f"{{{least}, {'' if most is None else most}}}"
            return f"({written(inner)}){signs.get((least, most), count)}"
        case _:
            raise AssertionError(node)
    return f"({text})" if nested else text


NAMES = ["root", "Root", "start", "a-b", "a_b"]
leaves = st.one_of(
    st.text(ALPHABET, max_size=2).map(lambda word: ("text", word)),
    st.tuples(st.just("set"), st.booleans(), st.text("abé", min_size=1, max_size=2)),
    st.just(("any",)),
    st.sampled_from(NAMES).map(lambda name: ("rule", name)),
)
nodes = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["all", "one"]), st.lists(inner, min_size=1, max_size=3)),
        st.tuples(st.just("repeat"), inner, st.integers(0, 2), st.none() | st.integers(2, 3)),
        st.tuples(st.just("repeat"), inner, st.just(0), st.just(1)),
    ),
    max_leaves=5,
)
grammars = st.fixed_dictionaries(dict.fromkeys(NAMES, nodes))

WORD: Node = ("repeat", ("set", False, "ab"), 1, None)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(grammars)
@example(dict.fromkeys(NAMES, ("text", "a")) | {"root": ("all", [WORD, ("text", "ab")])})
@example(  # with recursion, so that no terminal can hold it all
    dict.fromkeys(NAMES, WORD)
    | {"root": ("one", [("all", [("text", "é"), ("rule", "root")]),
                        ("all", [("rule", "start"), ("text", "ab")])])}
)  # fmt: skip
def test_the_language_is_the_grammars(grammar: dict[str, Node]) -> None:
    source = "".join(f"{name} ::= {written(node)} # {name}\n" for name, node in grammar.items())
    matcher = matcher_of(source)
    wanted = [text for text in TEXTS if matches(grammar, text)]
    if matcher.is_error():  # what matches nothing at all is refused
        assert "NoExtension" in matcher.get_error(), matcher.get_error()
        assert wanted == []
    else:
        assert [text for text in TEXTS if takes(matcher, text)] == wanted


JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
    string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= "-"? ([0-9] | [1-9] [0-9]{0,15}) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
ARITHMETIC = r"""
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""
LIST = r"""root ::= item+
# Excludes various line break characters
item ::= "- " [^\r\n\x0b\x0c\x85\u2028\u2029]+ "\n"
"""
JAPANESE = r"""root ::= jp-char+ ([ \t\n] jp-char+)*
jp-char ::= hiragana | cjk | [\U0001F600-\U0001F64F]
hiragana ::= [ぁ-ゟ]
cjk ::= [\u4E00-\u9FFF]"""


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (JSON, ['{"a": [1, -2.5e3, true], "é\\n": {}}', "{}"], ["[]", '{"a": 1,}', '{"a": 01}']),
        # Whose `ws` before "\n" takes line breaks too: nothing may be greedy.
        (ARITHMETIC, ["x=1\n", "(a +b)*3 = 7 \n\n", "a=1\nb=2\n"], ["x=1", "a + = 1\n"]),
        (LIST, ["- one\n- zwei äöü\n"], ["- one", "-one\n", "- a\u2028b\n"]),
        (JAPANESE, ["ぁ 一二", "😀"], ["a", "ぁ  一"]),
        (r'root ::= "\"\\\[\]\r\t" [\]\[\\^-] [+-]', ['"\\[]\r\t^-', '"\\[]\r\t]+'], ['"\\[]']),
        ("root ::= [a-]{2} [^]", ["a-\n"], ["b-\n", "a-"]),
        ("root::=[a-c]{2,}|\n# a comment\n \"x\"\r\n\r\n", ["ab", "abcabc", "x"], ["a", "xx"]),
        ('root ::= "yes" | "yes please"', ["yes", "yes please"], ["yes "]),
    ],
)  # fmt: skip
def test_examples(grammar: str, good: list[str], bad: list[str]) -> None:
    matcher = matcher_of(grammar)
    assert not matcher.is_error(), matcher.get_error()
    assert [text for text in good + bad if takes(matcher, text)] == good
    if grammar == JSON:
        assert all(isinstance(json.loads(text), dict) for text in good)


def test_an_unused_rule_may_be_anything() -> None:
    assert takes(matcher_of('unused ::= unused "b"\nroot ::= "a"'), "a")


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("", "no rule root"),
        ('start ::= "a"', "no rule root"),
        ('root ::= "a" missing', "line 1: there is no rule missing"),
        ('root ::= "a"\n| "b"', "line 2: a rule must begin"),
        ('root ::= "a" root ::= "c"', "line 1: a rule must begin"),
        ('\n\nroot ::= "a', "line 3: '\"a' is not valid GBNF"),
        ("root ::= [a", "is not valid GBNF"),
        ("root ::= <think>", "is not valid GBNF"),
        ('root ::= ("a"', "without )"),
        ('root ::= "a")', "without ("),
        ('root ::= "a"*+', "nothing to repeat"),
        ("root ::= * 'a'", "is not valid GBNF"),
        ('root ::= ("a" | *)', "nothing to repeat"),
        ('root ::= "a"{3,2}', "below its minimum"),
        ('root ::= "a"{0}', "repeats nothing"),
        ('root ::= "a"{2001}', "over 2000"),
        ("root ::= [z-a]", "backwards"),
        ("root ::= []", "matches nothing"),
        (r'root ::= "\q"', "no escape"),
        (r'root ::= "\u12"', "no escape"),
        (r'root ::= "\ud800"', "not a valid character"),
        (r'root ::= "\UFFFFFFFF"', "not a valid character"),
        ("root ::= " + "(" * 60_000, "nested over 32"),
        ("root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000, "nested over 32"),
        ("root ::= " + '"' * 60_000, "symbols"),
        ("root ::= " + "[" * 60_000, "is not valid GBNF"),
        ("root ::= [" + "a" * 60_000 + "]", "a set has 60000 characters, over 2000"),
        ("root ::= " + "{" * 60_000, "is not valid GBNF"),
        ('root ::= "a"{' + "9" * 60_000 + "}", "is not valid GBNF"),
        ('root ::= "' + "a" * (MAX_SYMBOLS + 1) + '"', f"can have {MAX_SYMBOLS}"),
        ('root ::= ("x" | root) ' + '"a"?' * MAX_RECURSIVE_SYMBOLS, "a recursive grammar can have"),
        ("".join(f"r{n} ::= .\n" for n in range(MAX_RULES + 1)), f"more than {MAX_RULES} rules"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_no_grammar_says_why(grammar: str, words: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(words)) as caught:
        to_lark(grammar)
    assert len(str(caught.value)) < 300


@given(st.text('ab"[](){}|*+?\\.:=\n #,019-^x', max_size=40))
def test_any_text_is_a_grammar_or_refused(text: str) -> None:
    for source in (text, "root ::= " + text):
        try:
            lark = to_lark(source)
        except GrammarError:
            continue
        error = LLMatcher(tokenizer(), LLMatcher.grammar_from_lark(lark), log_level=0).get_error()
        assert "lexer error" not in error
        assert "parse" not in error.lower(), (source, lark, error)


@pytest.mark.parametrize(
    ("grammar", "syntax"),
    [
        ('root ::= "a"', "gbnf"),
        ('# comment\n\n  root-2::="a"', "gbnf"),
        ('start: "a"', "lark"),
        ('start: "x ::= y"', "lark"),
        ("%llguidance {}\nstart: A\nA: /a/", "lark"),
        ("\n" * 60_000, "lark"),
        (" " * 60_000, "lark"),
        ("a" * 60_000, "lark"),
        ("a\n" * 30_000, "lark"),
    ],
    ids=lambda value: value[:20],
)
def test_which_language_it_is(grammar: str, syntax: str) -> None:
    assert syntax_of(grammar) == syntax


def test_the_end_of_generation_is_no_character() -> None:
    assert not matcher_of("root ::= . .").consume_token(EOS)
