"""What a chat template from a stranger may do: hardly anything that a real one does not need."""

import datetime
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmserve.chat import meter, sandbox
from llmserve.chat import template as module
from llmserve.chat.chat_format import ChatStyle
from llmserve.chat.template import ChatTemplate
from llmserve.core import Message, Tool, ToolCall, ToolUse
from llmserve.engine.input.prompt import load_style
from llmserve.errors import InvalidRequestError
from tests.chat import templates
from tests.chat.bombs import BOMBS
from tests.fakes import FakeRuntime

USER = Message("user", "Hello")


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_text="<s>", eos_text="</s>")


# -- bombs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After little work, which is counted (the suite's limit is the only clock)."""
    monkeypatch.setattr(meter, "MAX_WORK", 2_000_000)
    bomb = template(BOMBS[name])
    assert bomb.fault is None
    with pytest.raises(InvalidRequestError, match="the model's chat template") as caught:
        bomb.render([USER])
    assert caught.value.param == "messages"
    assert len(caught.value.message) < 1000


def test_others_run_beside_a_bomb() -> None:
    """It never holds the interpreter for long: this thread goes on while two are rendered."""
    source = BOMBS["nested loops"]
    done = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        bombs = [pool.submit(template(source).attempt, [USER]) for _ in range(2)]
        bombs[0].add_done_callback(lambda _: done.set())
        turns = 0
        while not done.is_set():
            assert ChatTemplate("{{ bos_token }}", bos_text="x", eos_text="").render([USER]) == "x"
            turns += 1
        assert turns > 1
        assert [bomb.result() for bomb in bombs] == [None, None]


def test_what_is_given_raises_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long conversation is no attack."""
    monkeypatch.setattr(meter, "MAX_WORK", 100_000)
    loops = template("{% for m in messages %}{% for i in range(9000) %}{% endfor %}{% endfor %}")
    with pytest.raises(InvalidRequestError, match="over its limits"):
        loops.render([USER] * 50)
    assert loops.render([Message("user", "Hello" * 400)] * 50) == ""


def test_a_value_that_is_too_deep() -> None:
    """Of the request, too: C code would follow it."""
    deep = "[" * 150 + "]" * 150
    call = ToolCall("call_1", "f", f'{{"a": {deep}}}')
    with pytest.raises(InvalidRequestError, match="nested over 100 deep"):
        template(templates.QWEN3).render([USER, Message("assistant", "", tool_calls=(call,))])


# -- at load --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (BOMBS["nested loops"], "it loops for too long"),
        (BOMBS["output"], "it writes over"),
        ("{# " + "x" * (module.MAX_SOURCE_LEN - 5) + " #}", "characters, over 131072"),
        ("{% set a = b %}" * (sandbox.MAX_NODES // 2), "parts, over 6000"),
    ],
    ids=["loops", "output", "large", "many parts"],
)
def test_a_model_whose_template_is_a_bomb_completes_only(
    source: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        style = load_style(FakeRuntime(chat_template=source).info)
    assert "only completion works" in caplog.text
    assert reason in caplog.text
    assert style is not None
    with pytest.raises(InvalidRequestError, match=r"broken: .*; use mode completion"):
        style.render([USER])


def test_a_bomb_in_a_trial_is_the_last_trial() -> None:
    """It goes off only if there are tools, which is found out by the first request with some."""
    hidden = "{% if tools %}" + BOMBS["nested loops"] + "{% endif %}{{ messages[0].content }}"
    style = load_style(FakeRuntime(chat_template=hidden + "<tool_call> arguments").info)
    assert style is not None
    assert style.render([USER]).startswith("Hello")
    for messages in ([USER], [USER, USER]):
        with pytest.raises(InvalidRequestError, match="broken: it loops for too long"):
            style.render(messages, ToolUse((Tool("f"),)))


def test_a_template_that_refuses_the_trial_is_not_broken() -> None:
    style = load_style(FakeRuntime(chat_template="{{ messages[1].content }}").info)
    assert style is not None
    assert style.render([USER, USER]) == "Hello"


# -- what real templates need ---------------------------------------------------------------------

_PARAMETERS = json.dumps(
    {
        "type": "object",
        "properties": {
            f"parameter_{i}": {"type": "string", "description": "What it is. " * 10}
            for i in range(20)
        },
    }
)
QUESTION = " ".join(["question"] * 400)
TOOLS = ToolUse(tuple(Tool(f"tool_{i}", "Does it. " * 20, _PARAMETERS) for i in range(10)))


@pytest.mark.parametrize(
    "name", [name for name in dir(templates) if name.isupper() and name != "GEMMA"]
)
def test_a_long_conversation_with_many_tools(name: str) -> None:
    call = ToolCall("call_1", "tool_1", json.dumps({"parameter_1": "value " * 200}))
    turns = [
        Message("user", QUESTION),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "result " * 400, tool_call_id="call_1"),
        Message("assistant", "<think>\nHm.\n</think>\n\nIndeed."),
    ]
    style = ChatStyle(template(getattr(templates, name)))
    messages = [*turns * 100, USER]  # a megabyte
    text = style.render(messages, TOOLS)
    assert text.count(QUESTION) == 100
    assert "tool_9" in text


EXPRESSIONS = [
    "messages[::-1] | map(attribute='content') | join(', ')",
    "messages | selectattr('role', 'equalto', 'user') | list | length",
    "messages | rejectattr('role', 'in', ['user']) | map(attribute='role') | unique | list",
    "(messages | groupby('role') | first).list | length",
    "messages | batch(2, 'none') | list",
    "messages | slice(2) | map('length') | list",
    "messages | map(attribute='content') | map('upper') | map('replace', 'E', 'e') | list",
    "messages | sum(attribute='content', start='x') if false else 3",
    "[3, 1, 2] | sort | reverse | list | string",
    "[1, 2] | sum ~ '|' ~ ([3, 1] | min) ~ [3, 1] | max",
    "{'b': 1, 'a': [2, 3]} | dictsort",
    "{'b': 1, 'a': [2, 3]} | tojson(indent=2)",
    "{'b': 1}.items() | list",
    "{'b': 1} | items | list",
    "{'b': 1}.get('b') + {}.get('c', 2)",
    "dict(a=1, **{'b': 2}) | tojson",
    "'a,b'.split(',') + 'c d'.split()",
    "'%s has %d, %5.2f' % ('x', 1700000000, 3)",
    "'%(a)s' % {'a': 1}",
    "'{} {a}'.format(1, a=2)",
    "'{a[b]}'.format_map({'a': {'b': 1}})",
    "'%s' | format('x')",
    "' x '.strip() ~ 'y'.center(9) ~ '7'.zfill(3) ~ 'a'.rjust(4)",
    "'a-b'.replace('-', '+') ~ ('a-b' | replace('-', '+')) ~ ('aaa' | replace('a', 'b', 2))",
    "'<b>' | e ~ ('<b>' | escape) ~ ('<b>' | safe)",
    "'text' | indent(4, first=true) ~ ('a\nb' | indent)",
    "'one two three' | truncate(8) ~ ('a b' | title) ~ ('a b' | wordcount)",
    "'a' in 'abc' and 1 not in [2] and 'role' in messages[0] and messages[0] in messages",
    "messages[0] == messages[1], messages[0] == messages[0]",
    "1 < 2 < 3, 7 // 2, 7 % 2, 2 ** 10, -7 | abs, 7.5 | round | int, '12' | int + 1",
    "range(5) | list, range(2, 8, 3) | list",
    "[1] * 3 + [2], 'ab' * 3, (1, 2) + (3,)",
    "('a' if messages else 'b') ~ (missing | default('c')) ~ (none | d('e', true))",
    "messages is iterable, messages[0] is mapping, 1 is eq 1, 3 is in [3], 'a' is lower",
    "missing is defined, none is none, namespace(a=1).a, cycler('a', 'b').next()",
    "'a.b'.startswith('a'), 'aXb'.lower().partition('x'), ' a'.lstrip(), 'a\nb'.splitlines()",
    "['x', 'y'].index('y'), ['x', 'x'].count('x'), 'abc'.find('c'), 'abc'[1:], [1, 2, 3][:-1]",
    "messages | last | attr('x') is defined, 'https://a.b' | urlencode, '<p>x</p>' | striptags",
    "[['a', 1]] | list, dict([('a', 1)]) | tojson, 2.5.is_integer()",
]

STATEMENTS = [
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}{% endfor %}",
    "{% for m in messages %}{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}{% endfor %}",
    "{% for m in messages %}{{ loop.previtem is defined }}{{ loop.nextitem }}{% endfor %}",
    "{% for i in [[1, [2]], 3] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}",
    "{% for i in [] %}x{% else %}none{% endfor %}{% for i in range(9) %}{% break %}{% endfor %}",
    "{% macro m(a, b=2) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 3, 4, c=5) }}",
    "{% macro m() %}<{{ caller('x') }}>{% endmacro %}{% call(y) m() %}{{ y }}{% endcall %}",
    "{% set x %}a{{ 1 }}{% endset %}{{ x ~ x }}{% filter upper %}b{{ x }}{% endfilter %}",
    "{% set x = namespace(n=0) %}{% for m in messages %}{% set x.n = m %}{% endfor %}{{ x.n }}",
    "{% with a = 1 %}{{ a }}{% endwith %}{% block b %}c{% endblock %}{{ self.b() }}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for m in messages | reverse %}{{ m.role }}{% endfor %}",
    "{% autoescape true %}{{ '<' ~ messages }}{% endautoescape %}",
]


@pytest.mark.parametrize("source", [*(f"{{{{ {e} }}}}" for e in EXPRESSIONS), *STATEMENTS])
def test_what_it_renders_is_what_jinja_renders(source: str) -> None:
    plain = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    plain.filters["tojson"] = lambda value, indent=None: json.dumps(value, indent=indent)
    messages = [USER, Message("assistant", "Hi"), Message("user", "Bye")]
    turns = [{"role": m.role, "content": m.content} for m in messages]
    expected = plain.from_string(source).render(messages=turns)
    assert template(source).render(messages) == expected


def test_a_date() -> None:
    year = str(datetime.datetime.now().astimezone().year)
    assert template("{{ strftime_now('%d %b %Y') }}").render([USER]).endswith(year)


def test_jinja_has_no_filter_or_test_that_nobody_pays_for() -> None:
    """Of a later version; what the sandbox does not know is charged as what multiplies."""
    plain = jinja2.Environment(autoescape=False)
    ours = module._environment()
    free = {name for name, function in plain.filters.items() if ours.filters[name] is function}
    assert free == sandbox._FREE_FILTERS
    assert set(ours.globals) - {"raise_exception", "strftime_now"} == {
        "cycler", "dict", "joiner", "namespace", "range"
    }  # fmt: skip
