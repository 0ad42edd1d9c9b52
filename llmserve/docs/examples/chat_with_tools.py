"""A model calls a function, gets its result, and answers; then JSON of a schema."""

import json
from typing import Any

from llmserve import LLM


def weather(city: str) -> str:
    return json.dumps({"city": city, "celsius": 21, "sky": "clear"})


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city, now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 30}},
            "required": ["city"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"celsius": {"type": "integer"}, "umbrella": {"type": "boolean"}},
    "required": ["celsius", "umbrella"],
    "additionalProperties": False,
}

with LLM() as llm:
    messages: list[Any] = [{"role": "user", "content": "How warm is it in Paris?"}]
    # A large model decides by itself; the embedded one is told to call.
    answer = llm.chat(messages, tools=[TOOL], tool_choice="weather", max_tokens=100)
    messages.append(answer.message)
    for call in answer.tool_calls:
        print(f"{call.name}({call.arguments})")
        result = weather(**json.loads(call.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    print(llm.chat(messages, tools=[TOOL], tool_choice="none", max_tokens=40))

    json_schema = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    print(json.loads(llm.chat(messages, response_format=json_schema, max_tokens=100).text))
