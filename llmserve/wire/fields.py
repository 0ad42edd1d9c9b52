"""The values that fields of several dialects have in common, with their ranges."""

from typing import Annotated, Literal

from msgspec import Meta, Raw

MaxTokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Meta(min_length=1)]
TextsOrTokens = str | Annotated[list[str | TokenId | TokenIds], Meta(min_length=1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Timeout = Annotated[float, Meta(gt=0, le=86_400)]  # seconds
TopP = Annotated[float, Meta(gt=0, le=1)]
TopK = Annotated[int, Meta(ge=0, le=2**31 - 1)]
MinP = Annotated[float, Meta(ge=0, le=1)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
StopStrings = Annotated[list[StopString], Meta(max_length=16)]
Grammar = Annotated[str, Meta(min_length=1, max_length=65536)]
JsonObject = Annotated[Raw, Meta(extra_json_schema={"type": "object"})]  # as it was sent
JsonObjectOrNull = Annotated[Raw, Meta(extra_json_schema={"type": ["object", "null"]})]
LogitBias = Annotated[dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    """The wire's `stop` as core has it."""
    match stop:
        case None:
            return ()
        case str():
            return (stop,)
        case _:
            return tuple(stop)
