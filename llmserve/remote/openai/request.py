"""The OpenAI protocol: chat completions and completions, always streamed. What is asked."""

from urllib.parse import urlsplit

from msgspec import Raw

from llmserve.config.provider import Provider
from llmserve.core import (
    Constraint,
    Message,
    Mode,
    Request,
    ToolUse,
)
from llmserve.remote.openai.response import OpenAIDecoder
from llmserve.remote.protocol import (
    DEFAULT_MAX_TOKENS,
    Call,
    check_honoured,
    encode_body,
    not_honoured,
)

_BOTH = {
    "max_tokens", "stop", "seed", "num_logprobs", "temperature", "top_p", "frequency_penalty",
    "presence_penalty", "logit_bias",
}  # fmt: skip
_CHAT = _BOTH | {"prompt", "system", "messages", "constraint", "tool_use", "reasoning_effort"}
_COMPLETION = _BOTH | {"prompt", "prompt_tokens", "suffix"}
_WHOSE = "a provider of the OpenAI protocol"
_FIX = "leave it out, or list it in extra_parameters of models.toml if this one takes it"
_ONES = ("temperature", "top_p")  # whose default is 1
_OWN = ("top_k", "min_p", "ignore_eos")  # of other servers than OpenAI's


class OpenAIProtocol:
    def __init__(self, provider: Provider, remote_model: str) -> None:
        self._model = remote_model
        self._extra = frozenset[str](provider.extra_parameters)
        hosts = [urlsplit(url).hostname or "" for url in provider.urls]
        # Its models that think refuse what others need: the old name, and even default values.
        self._is_openai = all(
            host == "api.openai.com" or host.endswith(".openai.azure.com") for host in hosts
        )

    def headers(self, key: str | None) -> dict[str, str]:
        return {"authorization": f"Bearer {key}"} if key else {}

    def encode(self, request: Request, mode: Mode) -> Call:
        is_chat = mode is not Mode.COMPLETION
        self._check(request, is_chat=is_chat)
        body: dict[str, object] = {
            "model": self._model,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._sampling(request),
        }
        if is_chat:
            body |= self._chat(request)
        else:
            prompt = request.prompt_tokens if request.prompt is None else request.prompt
            body |= {
                "prompt": prompt, "suffix": request.suffix, "logprobs": request.num_logprobs
            }  # fmt: skip
            body["max_tokens"] = (
                DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
            )
        if request.constraint:
            body["response_format"] = _response_format(request.constraint)
        path = "/chat/completions" if is_chat else "/completions"
        return Call(path, encode_body({k: v for k, v in body.items() if v is not None}))

    def decoder(self, request: Request, mode: Mode) -> OpenAIDecoder:
        use = request.tool_use
        return OpenAIDecoder(
            with_logprobs=request.num_logprobs is not None,
            must_call=use is not None and use.choice == "required",
        )

    def _check(self, request: Request, *, is_chat: bool) -> None:
        """Raises `InvalidRequestError`."""
        honoured = (_CHAT if is_chat else _COMPLETION) | self._extra
        if request.sampling.top_k == 1:  # is temperature 0
            honoured |= {"top_k"}
        if "response_format" in self._extra:
            honoured |= {"constraint"}
        whose = _WHOSE if is_chat else f"{_WHOSE} in mode completion"
        check_honoured(request, honoured, whose, _FIX)
        constraint = request.constraint
        if constraint and constraint.kind not in ("json", "json_schema"):
            field = constraint.field or "response_format"
            raise not_honoured(field, _WHOSE, "use json_object or json_schema")

    def _sampling(self, request: Request) -> dict[str, object]:
        sampling = request.sampling
        is_greedy = sampling.top_k == 1 and "top_k" not in self._extra
        fields: dict[str, object] = {
            "temperature": 0 if is_greedy else sampling.temperature,
            "top_p": sampling.top_p,
            "frequency_penalty": sampling.frequency_penalty or None,
            "presence_penalty": sampling.presence_penalty or None,
            "logit_bias": {str(k): v for k, v in sampling.logit_bias.items()} or None,
            "stop": list(request.stop) or None,
            "seed": _signed(request.seed),
        }
        if self._is_openai:
            fields = {k: v for k, v in fields.items() if not (k in _ONES and v == 1)}
        # Named in the config, these are always sent: such servers have defaults of their own.
        own = {name: getattr(sampling, name) for name in _OWN if name in self._extra}
        return fields | own

    def _chat(self, request: Request) -> dict[str, object]:
        takes_new = self._is_openai or "max_completion_tokens" in self._extra
        logprobs = request.num_logprobs
        return {
            "messages": self._messages(request),
            "max_completion_tokens" if takes_new else "max_tokens": request.max_tokens,
            "logprobs": None if logprobs is None else True,
            "top_logprobs": logprobs or None,
            "reasoning_effort": request.reasoning_effort,
            **(_tools(request.tool_use) if request.tool_use else {}),
        }

    def _messages(self, request: Request) -> list[dict[str, object]]:
        if request.messages is not None:
            return [self._message(message) for message in request.messages]
        given = (("system", request.system), ("user", request.prompt))
        return [{"role": role, "content": text} for role, text in given if text is not None]

    def _message(self, message: Message) -> dict[str, object]:
        wire: dict[str, object] = {"role": message.role, "content": message.content}
        if message.name is not None and message.role != "tool":  # a result has its call's id
            wire["name"] = message.name
        if message.tool_call_id is not None:
            wire["tool_call_id"] = message.tool_call_id
        if message.reasoning is not None and not self._is_openai:  # which has no field for it
            wire["reasoning_content"] = message.reasoning
        if message.tool_calls:
            wire["content"] = message.content or None
            wire["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in message.tool_calls
            ]
        return wire


def _signed(seed: int | None) -> int | None:
    """Of 64 bits, as the API has it."""
    return seed if seed is None or seed < 2**63 else seed - 2**64


def _tools(use: ToolUse) -> dict[str, object]:
    tools = []
    for tool in use.tools:
        function: dict[str, object] = {"name": tool.name}
        if tool.description is not None:
            function["description"] = tool.description
        if tool.parameters is not None:
            function["parameters"] = Raw(tool.parameters)
        tools.append({"type": "function", "function": function})
    choice: object = use.choice
    if use.name is not None:
        choice = {"type": "function", "function": {"name": use.name}}
    return {
        "tools": tools,
        "tool_choice": choice,
        "parallel_tool_calls": None if use.parallel else False,
    }


def _response_format(constraint: Constraint) -> dict[str, object]:
    if constraint.kind == "json":
        return {"type": "json_object"}
    schema = {"name": "answer", "schema": Raw(constraint.source), "strict": True}
    return {"type": "json_schema", "json_schema": schema}
