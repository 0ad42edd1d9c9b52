"""Speculation by prompt lookup: what may come next, found in what the sequence already holds. Pure.

Where the last tokens stood earlier in the same sequence, what followed them there is a guess at
what follows here; but only up to where the same two tokens had another follower the time before: in
a list, what stands between the numbers, but not the numbers. A step can verify some of it: the
guessed tokens are computed behind the pending one, the sampler chooses from each row in turn, and
the guesses are kept as long as it chooses just them. So every token is chosen from the logits of
exactly what precedes it, by the same draws: the distribution is that of decoding one by one
(Leviathan et al., 2023, whose rejection rule comes to this where the draft is a single certain
token), and greedy answers are the same.

Whether that pays is a matter of what the tokens of a step cost (`best_len`).
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq

MATCH_LENS = (4, 2)  # tokens that must agree, the longer first: 2 finds the way back after a change
MAX_DRAFT = 24  # tokens
MIN_GAIN = 1.05  # in tokens per second; less is not worth the risk of a wrong guess
PRIOR, PRIOR_WEIGHT = 0.6, 4.0  # share of guessed tokens that come true, before any has
MEMORY = 0.97  # what a verified guess still counts when the next one is


class Drafter:
    """The guesses of one sequence. It learns from the tokens themselves, drafted or not."""

    __slots__ = ("_changed", "_ends", "_guess", "_guessed_at", "_hits", "_num_indexed", "_trials")

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # tokens -> position after their last place
        self._changed: set[tuple[int, ...]] = set()  # whose follower was another the time before
        self._num_indexed = 0
        self._guess: Seq[int] = ()
        self._guessed_at = 0
        self._hits = PRIOR * PRIOR_WEIGHT
        self._trials = PRIOR_WEIGHT

    @property
    def acceptance(self) -> float:
        """The share of guessed tokens that came true, those before a wrong one alone."""
        return self._hits / self._trials

    def guess(self, tokens: Seq[int]) -> Seq[int]:
        """At most `MAX_DRAFT` tokens that may follow `tokens`, which only ever grow."""
        self._learn(tokens)
        self._index(tokens)
        self._guess = self._look_up(tokens)
        self._guessed_at = len(tokens)
        return self._guess

    def _learn(self, tokens: Seq[int]) -> None:
        """Compare the last guess with what came since."""
        for guessed, token in zip(self._guess, tokens[self._guessed_at :], strict=False):
            self._hits = MEMORY * self._hits + (guessed == token)
            self._trials = MEMORY * self._trials + 1
            if guessed != token:
                break

    def _index(self, tokens: Seq[int]) -> None:
        """Note where everything stands but for the last token, whose follower is not known."""
        for end in range(self._num_indexed + 1, len(tokens)):
            for length in MATCH_LENS:
                if end >= length:
                    self._note(tuple(tokens[end - length : end]), end, tokens)
        self._num_indexed = max(self._num_indexed, len(tokens) - 1)

    def _note(self, run: tuple[int, ...], end: int, tokens: Seq[int]) -> None:
        """`run` stands before `end`, where its follower is."""
        before = self._ends.get(run)
        if before is not None and tokens[before] != tokens[end]:
            self._changed.add(run)
        else:
            self._changed.discard(run)
        self._ends[run] = end

    def _look_up(self, tokens: Seq[int]) -> Seq[int]:
        for length in MATCH_LENS:
            end = self._ends.get(tuple(tokens[-length:])) if len(tokens) >= length else None
            if end is not None:
                return tokens[end : self._end_of_guess(end, tokens)]
        return ()

    def _end_of_guess(self, begin: int, tokens: Seq[int]) -> int:
        length = MATCH_LENS[-1]
        for end in range(begin, min(begin + MAX_DRAFT, len(tokens))):
            if tuple(tokens[end - length : end]) in self._changed:
                return end
        return min(begin + MAX_DRAFT, len(tokens))


def best_len(
    acceptance: float, max_len: int, num_others: int, step_s: Callable[[int], float]
) -> int:
    """How many guessed tokens to verify: those with the most tokens per second, or none.

    `step_s(n)` is what the step is expected to take with n of them; `num_others` sequences get a
    token from it anyway, and wait for the draft as well.
    """
    best, best_rate = 0, (num_others + 1) / step_s(0) * MIN_GAIN
    expected, chance = num_others + 1.0, 1.0
    for length in range(1, max_len + 1):
        chance *= acceptance
        expected += chance
        rate = expected / step_s(length)
        if rate > best_rate:
            best, best_rate = length, rate
    return best
