"""How long a step takes on this machine with this model, learned from the steps themselves. Pure.

A step of `rows` decoding sequences and `prompt` prompt tokens, with `cells` KV cells in use, takes

    fixed + row * rows + token * prompt + attention * (rows + prompt) * cells

seconds. The four coefficients are a least-squares fit over the last steps, older ones counting
less and less, in relative errors: 5 % of a short step weigh as much as 5 % of a long one. Three
things keep it honest:

- No coefficient is ever negative, so more work never seems to take less time.
- What a slow step can say is bounded (Huber): one that was ten times slower than expected, because
  the machine did something else, counts as somewhat slower. Nothing makes a step faster than it is.
- Where most of the last steps are off in the same direction, the machine's speed has changed, or
  the first guess was for another model: all coefficients are scaled at once.
"""

import math
from collections import deque

PRIOR = (5e-3, 5e-3, 3e-3, 2e-7)  # SmolLM2-135M on two cores: any start will do
FLOOR = (1e-6, 1e-7, 1e-7, 0.0)
MEMORY = 100  # about as many of the last steps count
MIN_MEMORY = 10
MAX_SURPRISE = 0.3  # of the expected time
SPEED_CHANGE = 1.3
MAX_WINDOW = 31
NUM_SWEEPS = 3
MIN_STEP_S, MAX_STEP_S = 1e-6, 1e4
_NUM = len(PRIOR)
FIRST_GUESS = 128.0
WEIGHT = 0.05  # of a new answer: about the last twenty count


class Costs:
    """`observe` takes about 15 microseconds, the rest less than one."""

    def __init__(self) -> None:
        self._coefficients = list(PRIOR)
        self._gram = [[0.0] * _NUM for _ in range(_NUM)]
        self._moment = [0.0] * _NUM
        self._ratios: deque[float] = deque(maxlen=MAX_WINDOW)  # measured over expected
        self._num_observed = 0
        self._window = 1  # ratios that it takes to see a change of speed

    def step_s(self, num_rows: int, num_prompt: int, num_cells: int) -> float:
        """Expected seconds; always positive."""
        return _dot(self._coefficients, _features(num_rows, num_prompt, num_cells))

    def max_prompt_tokens(self, num_rows: int, num_cells: int, target_s: float) -> int:
        """The most prompt tokens with which a step is expected to take at most `target_s`."""
        left_s = target_s - self.step_s(num_rows, 0, num_cells)
        return max(0, int(left_s / self._token_s(num_cells)))

    def prefill_s(self, num_tokens: int, chunk: int = 256) -> float:
        """Expected seconds to compute a prompt alone, in steps of `chunk` tokens."""
        fixed_s = math.ceil(num_tokens / chunk) * self._coefficients[0]
        return fixed_s + num_tokens * self._token_s(num_tokens // 2)

    def observe(self, num_rows: int, num_prompt: int, num_cells: int, measured_s: float) -> None:
        """Learn from one step."""
        if not MIN_STEP_S < measured_s < MAX_STEP_S:  # no step at all, or the machine slept
            return
        features = _features(num_rows, num_prompt, num_cells)
        ratio = measured_s / _dot(self._coefficients, features)
        self._ratios.append(ratio)
        if self._has_changed_speed():
            ratio = measured_s / _dot(self._coefficients, features)
        self._learn(features, min(ratio, 1 + MAX_SURPRISE))

    def _token_s(self, num_cells: int) -> float:
        return self._coefficients[2] + self._coefficients[3] * num_cells

    def _has_changed_speed(self) -> bool:
        """Scale everything by the usual ratio, where that is far from 1."""
        if len(self._ratios) < self._window:
            return False
        self._window = min(2 * self._window + 1, MAX_WINDOW)
        usual = _median(self._ratios)
        if 1 / SPEED_CHANGE < usual < SPEED_CHANGE:
            return False
        for i in range(_NUM):
            self._coefficients[i] = max(FLOOR[i], self._coefficients[i] * usual)
            self._moment[i] /= usual  # a sum of feature * time / expected time ** 2
            for j in range(_NUM):
                self._gram[i][j] /= usual * usual
        self._ratios.clear()
        return True

    def _learn(self, features: tuple[float, ...], ratio: float) -> None:
        """Add one observation to the normal equations, then descend along each coefficient."""
        self._num_observed = min(self._num_observed + 1, MEMORY)
        kept = 1 - 1 / max(self._num_observed, MIN_MEMORY)  # the first ones are soon forgotten
        expected_s = _dot(self._coefficients, features)
        relative = [feature / expected_s for feature in features]
        gram, moment, coefficients = self._gram, self._moment, self._coefficients
        for i in range(_NUM):
            row = gram[i]
            for j in range(_NUM):
                row[j] = kept * row[j] + relative[i] * relative[j]
            moment[i] = kept * moment[i] + relative[i] * ratio
        for _ in range(NUM_SWEEPS):
            for i in range(_NUM):
                # A feature that has not been seen for long keeps its coefficient.
                if gram[i][i] > 1e-12:
                    gradient = moment[i] - _dot(gram[i], coefficients)
                    coefficients[i] = max(FLOOR[i], coefficients[i] + gradient / gram[i][i])


def _features(num_rows: int, num_prompt: int, num_cells: int) -> tuple[float, ...]:
    return 1.0, num_rows, num_prompt, (num_rows + num_prompt) * num_cells


def _dot(
    left: "list[float] | tuple[float, ...]", right: "list[float] | tuple[float, ...]"
) -> float:
    return left[0] * right[0] + left[1] * right[1] + left[2] * right[2] + left[3] * right[3]


def _median(values: "deque[float] | list[float]") -> float:
    return sorted(values)[len(values) // 2]


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
