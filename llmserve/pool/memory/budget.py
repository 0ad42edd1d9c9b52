"""How much memory models may take, of what the machine or its control group really offers."""

from llmserve.machine.memory import available_bytes

AUTO_SHARE = 0.8  # of what is free at the start; the rest is for everything else


class MemoryBudget:
    """`budget(resident_bytes)`: the most that all resident models may take now.

    Fixed at the start, but never more than what is really there: `resident_bytes` is what the
    caller's models already take, which is no longer available but is theirs.
    """

    def __init__(self, total_bytes: int | None = None) -> None:
        """`total_bytes` None: a share of what is available now."""
        # A plain int, as it goes into JSON: the config has a type of its own for sizes.
        self.total_bytes = int(
            available_bytes() * AUTO_SHARE if total_bytes is None else total_bytes
        )

    def __call__(self, resident_bytes: int) -> int:
        return min(self.total_bytes, resident_bytes + available_bytes())
