"""What one generation costs the key that asked for it, told as it goes on."""

from collections.abc import Callable

from llmserve.core import Delta, Event, Finished, ReasoningDelta, Started, ToolCallDelta

_TOKEN_LEN = 4  # characters of a token, about


class Bill:
    """Charges while the answer comes, so that who leaves early has paid for what it got.

    Of a part its length alone is known, so that is an estimate; the end settles it exactly.
    With `counts_prompt` false the prompt is on the bill of another choice of the same request.
    """

    def __init__(self, charge: Callable[[int], None], *, counts_prompt: bool = True) -> None:
        self.num_charged = 0
        self._charge = charge
        self._counts_prompt = counts_prompt

    def see(self, event: Event) -> None:
        match event:
            case Started(prompt_tokens=int(num_tokens)) if self._counts_prompt:
                self._add(num_tokens)
            case Delta(text) | ReasoningDelta(text) | ToolCallDelta(arguments=text):
                self._add(max(1, len(text) // _TOKEN_LEN))
            case Finished(usage=usage):
                num_prompt = usage.prompt_tokens if self._counts_prompt else 0
                self._add(num_prompt + usage.generated_tokens - self.num_charged)
            case _:
                pass

    def _add(self, num_tokens: int) -> None:
        self.num_charged += num_tokens
        self._charge(num_tokens)
