"""How long the answers of one model are, learned from those that ended."""

FIRST_GUESS = 128.0
WEIGHT = 0.05  # of a new answer: about the last twenty count


class OutputLengths:
    def __init__(self) -> None:
        self._mean = FIRST_GUESS

    def observe(self, num_generated: int) -> None:
        self._mean += WEIGHT * (num_generated - self._mean)

    def left(self, num_generated: int, max_left: int) -> int:
        """How many more tokens to expect of an answer that has `num_generated`.

        At least one: what has become longer than usual can end with any token.
        """
        return min(max_left, max(1, round(self._mean) - num_generated))
