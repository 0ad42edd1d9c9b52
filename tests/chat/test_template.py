"""A model's own template: rendered as Hugging Face would, and kept in its sandbox."""

import datetime
import json

import pytest

from llmserve.chat.template import ChatTemplate
from llmserve.core import Message
from llmserve.errors import InvalidRequestError

USER = Message("user", "Hi <b>&\"'")


def render(source: str, *messages: Message, bos: str = "<s>", eos: str = "</s>") -> str:
    return ChatTemplate(source, bos_text=bos, eos_text=eos).render(messages or (USER,))


# -- what templates rely on ---------------------------------------------------------------------

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nBe nice.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_chatml() -> None:
    assert render(CHATML, Message("user", "Hello")) == (
        "<|im_start|>system\nBe nice.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    messages = (Message("system", "S"), Message("user", "U"), Message("assistant", "A"))
    assert render(CHATML, *messages).startswith("<|im_start|>system\nS<|im_end|>\n")


def test_the_message_is_text_not_markup() -> None:
    assert render("{{ messages[0].content }}") == USER.content
    assert render("{{ messages[0].content }}", Message("user", "{{ 1 + 1 }}")) == "{{ 1 + 1 }}"


def test_the_special_tokens() -> None:
    assert render("{{ bos_token }}|{{ eos_token }}") == "<s>|</s>"


def test_blocks_leave_no_white_space() -> None:
    """As with Hugging Face's trim_blocks and lstrip_blocks."""
    assert render("a\n  {% if true %}\nb\n  {% endif %}\nc") == "a\nb\nc"


def test_loop_controls() -> None:
    source = "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert render(source) == "01"


def test_generation_marks_are_transparent() -> None:
    """They mark what to train on: SmolLM3 and others have them."""
    source = "a{% generation %}{% for m in messages %}b{% endfor %}{% endgeneration %}c"
    assert render(source) == "abc"


@pytest.mark.parametrize("name", ["tools", "documents"])
def test_what_hugging_face_always_passes_is_defined(name: str) -> None:
    assert render(f"{{{{ {name} is defined and {name} is none }}}}") == "True"


def test_tojson_is_not_for_html() -> None:
    assert render("{{ messages[0].content | tojson }}") == json.dumps(USER.content)
    assert render("{{ 'é<' | tojson }}") == '"é<"'


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("indent=2", '{\n  "b": 1,\n  "a": "é"\n}'),
        ("ensure_ascii=true", '{"b": 1, "a": "\\u00e9"}'),
        ("separators=(',', ':')", '{"b":1,"a":"é"}'),
        ("sort_keys=true", '{"a": "é", "b": 1}'),
        ("ensure_ascii=false, indent=none", '{"b": 1, "a": "é"}'),
    ],
)
def test_tojson_takes_what_hugging_faces_does(arguments: str, expected: str) -> None:
    assert render("{{ {'b': 1, 'a': 'é'} | tojson(" + arguments + ") }}") == expected


def test_strftime_now() -> None:
    assert render("{{ strftime_now('%Y') }}") in {
        str(datetime.datetime.now().astimezone().year + offset) for offset in (-1, 0)
    }


# -- refusals -----------------------------------------------------------------------------------


def test_raise_exception_is_the_callers_error_in_the_templates_words() -> None:
    with pytest.raises(InvalidRequestError, match="roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ undefined_thing.attribute }}",
        "{{ 1 / 0 }}",
        "{{ messages[0] + 1 }}",
        "{{ messages[7].content }}",
        "{{ {1: messages} | tojson(indent=lipsum) }}",
    ],
)
def test_whatever_a_template_trips_over_is_a_refusal(source: str) -> None:
    with pytest.raises(InvalidRequestError, match="chat template refuses these messages"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{ messages",
        "{% unknown_tag %}",
        "{{ x | no_such_filter }}",
        "{% generation %}",
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    ],
)
def test_a_broken_template_breaks_at_its_use(source: str) -> None:
    """Not before: a model whose template is broken can still complete text."""
    template = ChatTemplate(source, bos_text="", eos_text="")
    assert template.fault
    with pytest.raises(InvalidRequestError, match=r"broken: .*; use mode completion") as caught:
        template.render((USER,))
    assert caught.value.param == "mode"


def test_a_good_template_has_no_fault() -> None:
    assert ChatTemplate(CHATML, bos_text="", eos_text="").fault is None


# -- the sandbox ----------------------------------------------------------------------------------

ESCAPES = [
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ lipsum['__globals__']['os'] }}",
    "{{ (lipsum | attr('__globals__'))['os'] }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ ('' | attr('__class__')).__mro__ }}",
    "{{ (messages | map(attribute='__class__') | list)[0].__mro__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ namespace.__init__.__globals__.os }}",
    "{{ raise_exception.__globals__.jinja2 }}",
    "{{ strftime_now.__globals__.datetime }}",
    "{{ raise_exception.__code__.co_filename }}",
    "{{ messages.__class__.__base__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '{a.__class__.__mro__}'.format_map({'a': messages}) }}",
    "{{ ('{0.__class__.__mro__}' | attr('format'))(messages) }}",
    "{% set f = '{0.__class__.__mro__}'.format %}{{ f(messages) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends '/etc/passwd' %}",
    "{{ messages.append({}) }}",
    "{{ messages.pop() }}",
    "{{ messages.clear() }}",
    "{{ messages.sort() }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages[0].setdefault('a', 1) }}",
    "{% set messages[0].role = 'system' %}",
    "{{ (messages | attr('append'))({}) }}",
    "{% for i in range(10000000) %}x{% endfor %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_nothing_leaves_the_sandbox(source: str) -> None:
    with pytest.raises(InvalidRequestError):
        render(source)


def test_what_is_unsafe_is_undefined() -> None:
    """jinja prints an unsafe attribute as nothing; only using it is an error."""
    assert render("{{ range.__globals__ }}{{ ''.__class__ }}{{ messages.__class__ }}") == ""
    assert render("{{ raise_exception.__globals__ is defined }}") == "False"
