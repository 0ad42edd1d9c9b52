"""Answers as models write them, by format, and what is in them."""

from typing import Any, NamedTuple

from llmserve.chat.tools.formats.deepseek import DEEPSEEK, DEEPSEEK_31
from llmserve.chat.tools.formats.detect import THINKING
from llmserve.chat.tools.formats.harmony import HARMONY
from llmserve.chat.tools.formats.hermes import GENERIC, HERMES
from llmserve.chat.tools.formats.llama import LLAMA3
from llmserve.chat.tools.formats.mistral import MISTRAL, MISTRAL_ARRAY
from llmserve.chat.tools.formats.model import Format, Thinking
from llmserve.chat.tools.formats.qwen import QWEN_CODER
from llmserve.chat.tools.json_scan import ValueTypes

THINK, MISTRAL_THINK, SEED_THINK = THINKING
Call = tuple[str, Any]  # the arguments decoded

TYPES: dict[str, ValueTypes] = {
    "write_file": {"path": frozenset(["string"]), "text": frozenset(["string"])},
    "get_weather": {
        "city": frozenset(["string"]),
        "days": frozenset(["integer", "number"]),
        "unit": frozenset(["string", "null"]),
    },
}


class Recorded(NamedTuple):
    format: Format
    output: str
    text: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    thinking: Thinking | None = None
    in_thought: bool = False  # the prompt has opened it


PARIS = ("get_weather", {"city": "Paris"})
OSLO = ("get_weather", {"city": "Oslo"})

RECORDED: dict[str, Recorded] = {
    # -- Hermes, Qwen 2.5 and 3 ------------------------------------------------------------------
    "hermes": Recorded(
        HERMES,
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        calls=(PARIS,),
    ),
    "hermes-text-first": Recorded(
        HERMES,
        "I'll look that up.\n\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        text="I'll look that up.",
        calls=(PARIS,),
    ),
    "hermes-two": Recorded(
        HERMES,
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
        calls=(PARIS, OSLO),
    ),
    "hermes-arguments-first": Recorded(  # Hermes 2 Pro
        HERMES,
        '<tool_call>\n{"arguments": {"city": "Paris"}, "name": "get_weather"}\n</tool_call>',
        calls=(PARIS,),
    ),
    "hermes-compact": Recorded(
        HERMES,
        '<tool_call>{"name":"get_weather","arguments":{"city":"Paris"}}</tool_call>',
        calls=(PARIS,),
    ),
    "hermes-arguments-as-text": Recorded(
        HERMES,
        '<tool_call>\n{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}\n'
        "</tool_call>",
        calls=(PARIS,),
    ),
    "hermes-markers-in-a-string": Recorded(
        HERMES,
        '<tool_call>\n{"name": "write_file", "arguments": {"path": "a\\"}", "text": '
        '"</tool_call><tool_call>{"}}\n</tool_call>',
        calls=(("write_file", {"path": 'a"}', "text": "</tool_call><tool_call>{"}),),
    ),
    "hermes-no-arguments": Recorded(
        HERMES,
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        calls=(("now", {}),),
    ),
    "qwen3": Recorded(
        HERMES,
        "<think>\nThe user wants the weather.\n</think>\n\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        reasoning="The user wants the weather.",
        calls=(PARIS,),
        thinking=THINK,
    ),
    "qwen3-answer": Recorded(
        HERMES,
        "<think>\nEasy: 2 < 3.\n</think>\n\nIt is **4**.\n",
        text="It is **4**.\n",
        reasoning="Easy: 2 < 3.",
        thinking=THINK,
    ),
    "qwen3-calls-in-a-thought": Recorded(
        HERMES,
        "<think>\nI could write <tool_call> here.\n</think>\n\nNo.",
        text="No.",
        reasoning="I could write <tool_call> here.",
        thinking=THINK,
    ),
    "qwen3-thinking-2507": Recorded(
        HERMES,
        "Okay, the weather.\n</think>\n\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        reasoning="Okay, the weather.",
        calls=(PARIS,),
        thinking=THINK,
        in_thought=True,
    ),
    "no-call": Recorded(
        HERMES, "  <tool_cal is <b>not</b> one\n", "  <tool_cal is <b>not</b> one\n"
    ),
    "broken-call": Recorded(
        HERMES,
        "Well. <tool_call>\nnothing\n</tool_call>",
        "Well. <tool_call>\nnothing\n</tool_call>",
    ),
    "call-without-a-name": Recorded(
        HERMES, '<tool_call>{"city": "Paris"}', '<tool_call>{"city": "Paris"}'
    ),
    "generic": Recorded(
        GENERIC,
        'Sure.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        text="Sure.",
        calls=(PARIS,),
    ),
    # -- Llama 3 ---------------------------------------------------------------------------------
    "llama3": Recorded(
        LLAMA3, '{"name": "get_weather", "parameters": {"city": "Paris"}}', calls=(PARIS,)
    ),
    "llama3-python-tag": Recorded(
        LLAMA3,
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}',
        calls=(PARIS,),
    ),
    "llama3-type": Recorded(
        LLAMA3,
        '{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}',
        calls=(PARIS,),
    ),
    "llama3-two": Recorded(
        LLAMA3,
        '{"name": "get_weather", "parameters": {"city": "Paris"}}; '
        '{"name": "get_weather", "parameters": {"city": "Oslo"}}',
        calls=(PARIS, OSLO),
    ),
    "llama3-json-answer": Recorded(LLAMA3, '{"city": "Paris"}', text='{"city": "Paris"}'),
    "llama3-answer": Recorded(LLAMA3, 'Use {"name": "x"}.', text='Use {"name": "x"}.'),
    # -- Mistral ---------------------------------------------------------------------------------
    "mistral-nemo": Recorded(
        MISTRAL_ARRAY,
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "a1B2c3D4e"}, '
        '{"name": "get_weather", "arguments": {"city": "Oslo"}, "id": "f5G6h7I8j"}]',
        calls=(PARIS, OSLO),
    ),
    "mistral-7b-v0.3": Recorded(
        MISTRAL_ARRAY,
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]',
        calls=(PARIS,),
    ),
    "mistral-small-3.2": Recorded(
        MISTRAL, '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', calls=(PARIS,)
    ),
    "mistral-small-3.2-two": Recorded(
        MISTRAL,
        'Both.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}'
        '[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Oslo"}',
        text="Both.",
        calls=(PARIS, OSLO),
    ),
    "mistral-without-args-marker": Recorded(
        MISTRAL, '[TOOL_CALLS]get_weather{"city": "Paris"}', calls=(PARIS,)
    ),
    "magistral": Recorded(
        MISTRAL,
        '[THINK]Weather.[/THINK][TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
        reasoning="Weather.",
        calls=(PARIS,),
        thinking=MISTRAL_THINK,
    ),
    # -- Qwen3-Coder, Nemotron -------------------------------------------------------------------
    "qwen3-coder": Recorded(
        QWEN_CODER,
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        calls=(("get_weather", {"city": "Paris", "days": 3}),),
    ),
    "qwen3-coder-lines": Recorded(
        QWEN_CODER,
        "I'll write it.\n\n<tool_call>\n<function=write_file>\n<parameter=path>\na.py\n"
        '</parameter>\n<parameter=text>\n\nif a < b:\n    print("<p>")\n\n</parameter>\n'
        "</function>\n</tool_call>",
        text="I'll write it.",
        calls=(("write_file", {"path": "a.py", "text": '\nif a < b:\n    print("<p>")\n'}),),
    ),
    "qwen3-coder-without-tool-call": Recorded(
        QWEN_CODER,
        "<function=get_weather>\n<parameter=city>\n5\n</parameter>\n</function>\n</tool_call>",
        calls=(("get_weather", {"city": "5"}),),
    ),
    "qwen3-coder-two": Recorded(
        QWEN_CODER,
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
        "<parameter=unit>\nnull\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        calls=(("get_weather", {"city": "Paris", "unit": None}), ("now", {})),
    ),
    "nemotron-inline": Recorded(
        QWEN_CODER,
        "<think>\nHm.\n</think>\n<tool_call>\n<function=other>\n<parameter=a>[1, 2]</parameter>\n"
        "<parameter=b>x y</parameter>\n</function>\n</tool_call>\n",
        reasoning="Hm.",
        calls=(("other", {"a": [1, 2], "b": "x y"}),),
        thinking=THINK,
    ),
    # -- gpt-oss ---------------------------------------------------------------------------------
    "harmony": Recorded(
        HARMONY,
        "<|channel|>analysis<|message|>A greeting.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Hello!<|return|>",
        text="Hello!",
        reasoning="A greeting.",
    ),
    "harmony-call": Recorded(
        HARMONY,
        "<|channel|>analysis<|message|>Need the weather.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.get_weather "
        '<|constrain|>json<|message|>{"city": "Paris"}<|call|>',
        reasoning="Need the weather.",
        calls=(PARIS,),
    ),
    "harmony-recipient-first": Recorded(
        HARMONY,
        ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Paris"}',
        calls=(PARIS,),
    ),
    "harmony-preamble": Recorded(
        HARMONY,
        "<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant"
        '<|channel|>commentary to=functions.get_weather<|message|>{"city":"Paris"}<|call|>',
        text="I will look.",
        calls=(PARIS,),
    ),
    # -- DeepSeek --------------------------------------------------------------------------------
    "deepseek-r1": Recorded(
        DEEPSEEK,
        "Weather.\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
        'get_weather\n```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>'
        'function<｜tool▁sep｜>get_weather\n```json\n{"city": "Oslo"}\n```<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜>",
        reasoning="Weather.",
        calls=(PARIS, OSLO),
        thinking=THINK,
        in_thought=True,
    ),
    "deepseek-v3.1": Recorded(
        DEEPSEEK_31,
        "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"city": "Paris"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>'
        '{"city": "Oslo"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        text="Let me see.",
        calls=(PARIS, OSLO),
    ),
    # -- others ----------------------------------------------------------------------------------
    "seed": Recorded(
        HERMES,
        "<seed:think>\nHm</seed:think>Yes",
        text="Yes",
        reasoning="Hm",
        thinking=SEED_THINK,
    ),
}
