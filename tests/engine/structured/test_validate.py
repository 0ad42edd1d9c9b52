"""What is refused before anything else is done for a request; see also `test_compiler.py`."""

import pytest

from llmserve.core import Constraint, Message, Request, SamplingParams, Tool, ToolUse
from llmserve.engine.engine import LocalEngine
from llmserve.engine.structured.validate import check_request, field_of
from llmserve.errors import InvalidRequestError
from tests.fakes import FakeRuntime
from tests.policies import policy

REGEX = Constraint("regex", "a+", "format")
NOW = Tool("now")
DEEP = "[" * 1000 + "]" * 1000


def test_errors_call_a_grammar_as_its_dialect_does() -> None:
    assert field_of(Constraint("gbnf", "x")) == "response_format.grammar"
    assert field_of(Constraint("gbnf", "x", "grammar")) == "grammar"


@pytest.mark.parametrize(
    "request_",
    [
        Request(),
        Request(constraint=REGEX),
        Request(tool_use=ToolUse((NOW,)), constraint=Constraint("json")),
        Request(tool_use=ToolUse((NOW,), "required"), constraint=REGEX),
        Request(tool_use=ToolUse((NOW,), "none"), sampling=SamplingParams(ignore_eos=True)),
        Request(tool_use=ToolUse(()), constraint=REGEX),
    ],
    ids=str,
)
def test_what_goes_together(request_: Request) -> None:
    check_request(request_)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (Request(constraint=REGEX, stop=("x",)), "parameters.stop"),
        (
            Request(constraint=REGEX, sampling=SamplingParams(ignore_eos=True)),
            "parameters.ignore_eos",
        ),
        (
            Request(tool_use=ToolUse((NOW,)), sampling=SamplingParams(ignore_eos=True)),
            "parameters.ignore_eos",
        ),
        (Request(tool_use=ToolUse((NOW,)), constraint=REGEX), "response_format"),
        (Request(tool_use=ToolUse((NOW, Tool("a b")))), "tools[1].function.name"),
        (
            Request(tool_use=ToolUse((Tool("f", parameters=DEEP),))),
            "tools[0].function.parameters",
        ),
        (
            Request(constraint=Constraint("json_schema", DEEP)),
            "response_format.json_schema.schema",
        ),
        (Request(constraint=Constraint("regex", "\ud800")), "response_format.regex"),
    ],
)
def test_what_is_refused(request_: Request, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_request(request_)
    assert caught.value.param == param


@pytest.mark.anyio
async def test_it_is_the_first_thing_that_is_looked_at() -> None:
    """Before the template, which this model does not even have."""
    engine = LocalEngine("fake", FakeRuntime(), policy=policy())
    asked = Request(messages=(Message("user", "Hi"),), tool_use=ToolUse((Tool("a b"),)))
    try:
        for answer in (engine.render(asked), anext(engine.generate(asked))):
            with pytest.raises(InvalidRequestError) as caught:
                await answer
            assert caught.value.param == "tools[0].function.name"
    finally:
        await engine.close()
