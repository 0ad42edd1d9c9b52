from hypothesis import given
from hypothesis import strategies as st

from llmserve.auth.rate_limit import Bill
from llmserve.core import (
    Delta,
    Event,
    Finished,
    FinishReason,
    Queued,
    ReasoningDelta,
    Started,
    Timings,
    ToolCallDelta,
    Usage,
)

PARTS = st.one_of(
    st.builds(Delta, st.text()),
    st.builds(ReasoningDelta, st.text(min_size=1)),
    st.builds(ToolCallDelta, st.integers(0, 3), st.text()),
    st.builds(Queued, st.integers(0, 9), st.floats(0, 9)),
)
COUNTS = st.integers(0, 10_000)


def finished(prompt_tokens: int, generated_tokens: int) -> Finished:
    usage = Usage(prompt_tokens, 0, generated_tokens)
    return Finished(FinishReason.STOP, None, usage, Timings(0, 0, 0, 0, 0))


def charges(events: list[Event], **options: bool) -> list[int]:
    charged: list[int] = []
    bill = Bill(charged.append, **options)
    for event in events:
        bill.see(event)
    assert bill.num_charged == sum(charged)
    return charged


@given(COUNTS, COUNTS, st.lists(PARTS), st.booleans())
def test_the_end_settles_it_exactly(
    num_prompt: int, num_generated: int, parts: list[Event], is_known: bool
) -> None:
    started = Started("m", num_prompt if is_known else None, None)  # a provider does not tell
    charged = charges([started, *parts, finished(num_prompt, num_generated)])
    assert sum(charged) == num_prompt + num_generated


@given(COUNTS, st.lists(PARTS))
def test_who_leaves_has_paid_for_the_prompt_and_for_every_part(
    num_prompt: int, parts: list[Event]
) -> None:
    num_parts = sum(not isinstance(part, Queued) for part in parts)
    charged = charges([Started("m", num_prompt, None), *parts])
    assert sum(charged) >= num_prompt + num_parts


def test_a_long_part_is_several_tokens() -> None:
    assert list(charges([Delta("word " * 8)])) == [10]


def test_a_prompt_on_another_bill() -> None:
    events: list[Event] = [Started("m", 7, None), Delta("a"), finished(7, 3)]
    assert sum(charges(events, counts_prompt=False)) == 3
