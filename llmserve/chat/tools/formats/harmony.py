"""gpt-oss: everything is in channels."""

from llmserve.chat.tools.formats.model import START, TEXT, THOUGHT, Format, Kind, State, Writing

_CHANNEL_EXITS = dict.fromkeys(("<|end|>", "<|return|>", "<|call|>", "<|start|>"), START)
HARMONY = Format(  # gpt-oss; the prompt ends with <|start|>assistant
    "harmony",
    Writing(
        "<|channel|>commentary to=functions.",
        " <|constrain|>json<|message|>",
        "",
        trigger="<|channel|>",
        most=1,  # its <|call|> ends the generation
    ),
    {
        START: State(
            Kind.HEADER,
            {"<|message|>": TEXT},
            routes=((r"to=functions\.([a-zA-Z0-9_.-]+)", "arguments"), ("analysis", THOUGHT)),
        ),
        TEXT: State(Kind.TEXT, _CHANNEL_EXITS),
        THOUGHT: State(Kind.THOUGHT, _CHANNEL_EXITS),
        "arguments": State(Kind.ARGUMENTS, then="after"),
        "after": State(Kind.SKIP, {"<|start|>": START}),
    },
    marks=("<|channel|>", "<|message|>"),
    extra_markers=("<|channel|>", "<|constrain|>"),
    has_channels=True,
)
