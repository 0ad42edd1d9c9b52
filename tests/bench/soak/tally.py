"""What happened to every request, and the table of it."""

import itertools
from collections import Counter

from msgspec import Struct

from tests.bench.figures import Figure, percentile
from tests.bench.soak.asks import STAYS, Ask
from tests.bench.soak.faults import Fault
from tests.bench.soak.judge import Judge
from tests.bench.soak.replies import Reply
from tests.bench.soak.watch import Reading, slope

CRASHED = "engine_crashed"


class Trouble(Struct, frozen=True):
    """A request that did not get what it should have."""

    kind: str
    of: str  # a model, a sort of input, a path
    reason: str


class Tally:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.readings: list[Reading] = []
        self.lost: list[Trouble] = []
        self.hangs: list[Trouble] = []
        self.unruly: list[Trouble] = []  # bad input, or a command, with an answer that is none
        self.health_s: list[float] = []
        self._ttft_s: list[float] = []
        self._spared_ttft_s: list[float] = []  # of the model that nobody swaps or hits
        self._gaps_s: list[float] = []
        self._crashes: list[tuple[Ask, Reply]] = []
        self._exit_code = self._num_left = self._num_tracebacks = 0

    def take(self, ask: Ask, replies: list[Reply]) -> None:
        """All tries of one request."""
        self.counts["requests"] += 1
        self.counts["retried"] += len(replies) > 1
        self._crashes += [(ask, reply) for reply in replies if reply.error == CRASHED]
        last = replies[-1]
        if last.has_left:
            self.counts["cancels"] += 1
        elif last.is_whole:
            self.counts["answered"] += 1
            self._time(ask, replies)
        else:
            reason = f"try {len(replies)}: {last.status} {last.error}: {last.message}"
            troubles = self.hangs if last.error == "deadline" else self.lost
            troubles.append(Trouble(ask.kind, ask.model, reason))

    def end(self, exit_code: int, *, num_left: int, log_text: str) -> None:
        """The server has ended, and all faults are known.

        A crash is excused by a fault of that model and time only.
        """
        self._exit_code = exit_code
        self._num_left = num_left
        self._num_tracebacks = log_text.count("Traceback")
        for ask, reply in self._crashes:
            if any(f.hits(ask.model, reply.begin_s, reply.end_s) for f in self.faults):
                self.counts["crashed"] += 1
            else:
                reason = f"nobody hit its model, but {reply.message}"
                self.lost.append(Trouble(ask.kind, ask.model, reason))

    def troubles(self) -> list[str]:
        lines = [
            f"{name}: {trouble.kind}, {trouble.of}: {trouble.reason}"
            for name, troubles in (
                ("lost", self.lost),
                ("hang", self.hangs),
                ("unruly", self.unruly),
            )
            for trouble in troubles
        ]
        if self._exit_code:
            lines.append(f"the server's exit code is {self._exit_code}")
        return lines

    def _time(self, ask: Ask, replies: list[Reply]) -> None:
        last = replies[-1]
        if len(replies) == 1 and last.arrivals_s:
            ttft_s = last.arrivals_s[0] - last.begin_s
            self._ttft_s.append(ttft_s)
            if ask.model == STAYS:
                self._spared_ttft_s.append(ttft_s)
            self._gaps_s += [b - a for a, b in itertools.pairwise(last.arrivals_s)]

    def figures(self, judge: Judge) -> list[Figure]:
        minutes = [(r.time_s / 60, r) for r in self.readings[1:]]  # the first one is still warming
        last = self.readings[-1]
        num_held = sum(reading.num_held for reading in self.readings)
        num_zombies = sum(reading.zombies for reading in self.readings)
        judged = judge.num_judged
        return [
            Figure("requests", self.counts["requests"]),
            Figure("… answered", self.counts["answered"]),
            Figure("… whose client left", self.counts["cancels"]),
            Figure("… asked again after 429 or 503", self.counts["retried"]),
            Figure("bad inputs", self.counts["bad"]),
            Figure("loads, unloads and reloads", self.counts["commands"]),
            Figure("faults: processes killed or stopped", len(self.faults)),
            Figure("`engine_crashed` told to who ran there", self.counts["crashed"]),
            Figure("greedy answers compared with the model", judged["greedy"]),
            Figure("… furthest that a token was from its best", judge.worst_gap, "nats"),
            Figure("… deterministic ones, with the calm server's", judged["deterministic"]),
            Figure("… constrained ones, with their schema", judged["constrained"]),
            Figure("… vectors, log probabilities", judged["vectors"] + judged["log probabilities"]),
            Figure("lost", len(self.lost), "", "<= 0"),
            Figure("wrong", len(judge.wrong), "", "<= 0"),
            Figure("hangs", len(self.hangs), "", "<= 0"),
            Figure("bad inputs and commands with a wrong status", len(self.unruly), "", "<= 0"),
            Figure("slots, queue places and leases held at rest", num_held, "", "<= 0"),
            Figure(
                "zombies at rest, processes at the end", num_zombies + self._num_left, "", "<= 0"
            ),
            Figure("tracebacks in the log", self._num_tracebacks, "", "<= 0"),
            Figure("memory of the server at rest", last.parent_bytes / 1e6, "MB"),
            Figure("… its slope", slope([(m, r.parent_bytes / 1e6) for m, r in minutes]), "MB/min"),
            Figure("… with all models", last.all_bytes / 1e6, "MB"),
            Figure("… its slope", slope([(m, r.all_bytes / 1e6) for m, r in minutes]), "MB/min"),
            Figure("descriptors: slope", slope([(m, r.descriptors) for m, r in minutes]), "/min"),
            Figure("threads: slope", slope([(m, r.threads) for m, r in minutes]), "/min"),
            *self._times(),
        ]

    def _times(self) -> list[Figure]:
        return [
            Figure(f"{name}, p99", percentile(values, 99) * 1e3, "ms")
            for name, values in (
                ("time to first token, of the model that is always loaded", self._spared_ttft_s),
                ("… of all, with loads and faults", self._ttft_s),
                ("gap between tokens", self._gaps_s),
                ("GET /health", self.health_s),
            )
            if values
        ]
