"""GBNF, llama.cpp's grammars -> Lark, as llguidance takes it. Pure, and without recursion.

The language stays the same, exactly. llguidance's terminals are greedy, and its own converter makes
one of every rule that it can: `[a-z]+` before "ing" then never ends. Here a grammar without
recursion is one terminal, all of it; in any other each terminal is a single character. For the
latter a mask takes longer: 3 ms for JSON and 49k tokens, where greedy terminals take 0.2.

Source of the language: llama.cpp, `grammars/README.md` and `llama-grammar.cpp`. `<token>` literals
are not taken.
"""

import json
import re
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Literal, NamedTuple

MAX_DEPTH = 32  # groups in groups; llguidance's own limit is not much higher
MAX_RULES = 500
MAX_SYMBOLS = 8000  # characters of literals, sets, names and repetitions; compiling takes a second
MAX_RECURSIVE_SYMBOLS = 2000  # of a grammar with recursion; all of them may be possible at once
MAX_REPETITIONS = 2000  # as llama.cpp
MAX_SET = 2000  # characters between brackets

_TOKEN = re.compile(
    r"""
     (?P<space>(?:[ \t]|\#[^\r\n]*)+)
    |(?P<newline>\r\n|\r|\n)
    |(?P<define>::=)
    |(?P<name>[A-Za-z0-9_-]+)
    |(?P<literal>"(?:[^"\\]|\\.)*")
    |(?P<set>\[(?:[^\]\\]|\\.)*\])
    |(?P<repeat>[*+?]|\{\s*\d{1,9}\s*(?:,\s*\d{0,9}\s*)?\})
    |(?P<any>\.)|(?P<open>\()|(?P<close>\))|(?P<bar>\|)
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_CHARACTER = re.compile(
    r"\\x([0-9A-Fa-f]{2})|\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})|\\(.)|(.)", re.DOTALL
)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]"}


class GrammarError(ValueError):
    """The grammar is not valid GBNF, or too large; the message says what and where."""


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def syntax_of(grammar: str) -> Literal["gbnf", "lark"]:
    """What a grammar is written in: the rules of GBNF have `::=`."""
    has_rule = re.search(r"^[ \t]*[\w-]+[ \t]*::=", grammar, re.MULTILINE)
    return "gbnf" if has_rule else "lark"


def to_lark(grammar: str) -> str:
    """The same language, as text of Lark. Raises `GrammarError`."""
    rules: dict[str, list[_Token]] = {}  # of two with the same name the later counts
    for name, body in _rules(_scan(grammar)):
        rules[name] = body
        if len(rules) > MAX_RULES:
            raise GrammarError(f"it has more than {MAX_RULES} rules")
    if "root" not in rules:
        raise GrammarError("it has no rule root")
    is_recursive = _is_recursive(rules)
    # In Lark capitals make a terminal. The numbers keep apart what differs by case alone.
    names = {name: f"{'r' if is_recursive else 'R'}{i}" for i, name in enumerate(rules)}
    bodies = {name: _translate(body, names) for name, body in rules.items()}
    num_symbols = sum(map(len, bodies.values()))
    most = MAX_RECURSIVE_SYMBOLS if is_recursive else MAX_SYMBOLS
    if num_symbols > most:
        kind = "recursive grammar" if is_recursive else "grammar"
        raise GrammarError(f"it has {num_symbols} symbols; a {kind} can have {most}")
    lines = [f"{names[name]}: {' '.join(symbols)}\n" for name, symbols in bodies.items()]
    return f"start: {names['root']}\n" + "".join(lines)


def _is_recursive(rules: dict[str, list[_Token]]) -> bool:
    graph = {
        name: {token.text for token in body if token.kind == "name"} for name, body in rules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return True
    return False


def _scan(grammar: str) -> Iterator[_Token]:
    position, line = 0, 1
    while position < len(grammar):
        match = _TOKEN.match(grammar, position)
        if match is None:
            raise GrammarError(
                f"line {line}: {grammar[position : position + 20]!r} is not valid GBNF"
            )
        kind = match.lastgroup
        assert kind is not None
        if kind != "space":
            yield _Token(kind, match[0], line)
        line += match[0].count("\n")
        position = match.end()


def _rules(tokens: Iterable[_Token]) -> Iterator[tuple[str, list[_Token]]]:
    """Name and body of each. A rule ends with its line, but not in a group or behind `|`."""
    for line in _lines(tokens):
        if [token.kind for token in line[:2]] != ["name", "define"]:
            raise GrammarError(f"line {line[0].line}: a rule must begin with its name and ::=")
        yield line[0].text, line[2:]


def _lines(tokens: Iterable[_Token]) -> Iterator[list[_Token]]:
    line: list[_Token] = []
    depth = 0
    for token in tokens:
        depth += {"open": 1, "close": -1}.get(token.kind, 0)
        if token.kind != "newline":
            line.append(token)
        elif line and depth <= 0 and line[-1].kind not in ("define", "bar"):
            yield line
            line = []
    if line:
        yield line


def _translate(body: list[_Token], names: dict[str, str]) -> list[str]:
    """The right side of a rule, a symbol an item."""
    out: list[str] = []
    depth = 0
    is_empty, can_repeat = True, False  # the alternative so far; what is last in it
    for kind, text, line in [*body, _Token("end", "", body[-1].line if body else 0)]:
        if is_empty and kind in ("bar", "close", "end"):
            out.append('""')
        match kind:
            case "open":
                depth += 1
                out.append("(")
            case "close":
                depth -= 1
                out.append(")")
            case "bar":
                out.append("|")
            case "repeat":
                if not can_repeat:
                    raise GrammarError(f"line {line}: {text} has nothing to repeat")
                out[-1] += _repetition(text, line)
            case "define":
                raise GrammarError(f"line {line}: a rule must begin on a line of its own")
            case "name":
                if text not in names:
                    raise GrammarError(f"line {line}: there is no rule {text[:80]}")
                out.append(names[text])
            case "any":
                out.append("/(?s:.)/")
            case "literal":
                out += _literal(text, line)
            case "set":
                out.append(_set(text, line))
        if not 0 <= depth <= MAX_DEPTH:
            reason = f"groups are nested over {MAX_DEPTH} deep" if depth > 0 else ") without ("
            raise GrammarError(f"line {line}: {reason}")
        is_empty = kind in ("open", "bar")
        can_repeat = kind in ("name", "any", "literal", "set", "close")
    if depth:
        raise GrammarError(f"line {line}: ( without )")
    return out


def _repetition(text: str, line: int) -> str:
    counts = [int(count) for count in re.findall(r"\d+", text)]
    if counts and counts[-1] == 0:
        raise GrammarError(f"line {line}: {text} repeats nothing")
    if max(counts, default=0) > MAX_REPETITIONS:
        raise GrammarError(f"line {line}: {text} is over {MAX_REPETITIONS} repetitions")
    if counts != sorted(counts):
        raise GrammarError(f"line {line}: {text} has a maximum below its minimum")
    return re.sub(r"\s", "", text)


def _literal(text: str, line: int) -> list[str]:
    """A character each, in a group, because what follows may repeat it as a whole."""
    characters = [json.dumps(c, ensure_ascii=False) for c, _ in _characters(text[1:-1], line)]
    return ["(", *characters, ")"] if len(characters) > 1 else characters or ['""']


def _set(text: str, line: int) -> str:
    """One character of a set, or not of it, as a regular expression."""
    negated = text.startswith("[^")
    characters = list(_characters(text[1 + negated : -1], line))
    if not characters:
        if negated:
            return "/(?s:.)/"
        raise GrammarError(f"line {line}: [] matches nothing")
    if len(characters) > MAX_SET:
        raise GrammarError(f"line {line}: a set has {len(characters)} characters, over {MAX_SET}")
    ranges: list[tuple[str, str]] = []
    index = 0
    while index < len(characters):
        low = high = characters[index][0]
        index += 1
        if index + 1 < len(characters) and characters[index] == ("-", False):
            high = characters[index + 1][0]
            index += 2
        if high < low:
            raise GrammarError(f"line {line}: {text[:80]} has a range that is backwards")
        ranges.append((low, high))
    inner = "".join(rf"\x{{{ord(low):x}}}-\x{{{ord(high):x}}}" for low, high in ranges)
    return f"/[{'^' * negated}{inner}]/"


def _characters(text: str, line: int) -> Iterator[tuple[str, bool]]:
    """Each character of a literal or a set, and whether it was escaped."""
    for match in _CHARACTER.finditer(text):
        code = match[1] or match[2] or match[3]
        if code:
            character = chr(int(code, 16)) if int(code, 16) < 0x110000 else "\ud800"
        elif match[4]:
            if match[4] not in _ESCAPED:
                raise GrammarError(f"line {line}: there is no escape {match[0]}")
            character = _ESCAPED[match[4]]
        else:
            character = match[5]
        if "\ud800" <= character <= "\udfff":
            raise GrammarError(f"line {line}: {match[0]} is not a valid character")
        yield character, bool(code or match[4])
