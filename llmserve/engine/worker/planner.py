"""What the next step computes, and what it should cost. Changes no sequence and no slot."""

import time

import msgspec

from llmserve.engine.kvcache.manager import KvCache
from llmserve.engine.messages import StepStats
from llmserve.engine.scheduler.cost_model import Costs, OutputLengths
from llmserve.engine.scheduler.recovery import Setbacks
from llmserve.engine.scheduler.scheduler import (
    Entries,
    Limits,
    Outlook,
    Work,
    add_drafts,
    has_room,
    plan_entries,
    plan_work,
    used_cells,
)
from llmserve.engine.worker.slots import Roster


class Planner:
    """Asks the pure `scheduler`, with what has been observed of earlier steps."""

    def __init__(self, limits: Limits, roster: Roster, kv: KvCache) -> None:
        self.limits = limits
        self.costs = Costs()
        self.lengths = OutputLengths()
        self.setbacks = Setbacks()
        self._roster = roster
        self._kv = kv

    def outlook(self) -> Outlook:
        return Outlook(self.costs, self.lengths, time.monotonic())

    def entries(self, outlook: Outlook) -> Entries:
        """What there is no room for goes, or else what there is room for enters."""
        running = self._roster.running
        has_place = has_room(running, self.limits, outlook.now_s)
        may_enter = self.setbacks.may_enter and has_place
        waiting = self._kv.ready(self._roster.waiting) if may_enter else []
        return plan_entries(running, waiting, self.limits, outlook)

    def work(self, outlook: Outlook) -> list[Work]:
        limits, running = self.setbacks.limited(self.limits), self._roster.running
        work = self._kv.clip(self.setbacks.chosen(plan_work(running, limits, outlook)))
        return add_drafts(work, limits, outlook, used_cells(running))

    def expect(self, work: list[Work]) -> StepStats:
        """What `work` is, and how long it should take; told once it is done."""
        num_drafted = sum(len(w.draft) for w in work)
        num_tokens = sum(w.num_tokens for w in work) + num_drafted
        num_decoded = sum(w.num_tokens == 1 for w in work) + num_drafted
        num_cells = used_cells(self._roster.running)
        num_prefilled = num_tokens - num_decoded
        expected_s = self.costs.step_s(num_decoded, num_prefilled, num_cells)
        return StepStats(
            num_decoded, num_prefilled, num_cells, expected_s=expected_s, num_drafted=num_drafted
        )

    def observe(self, expected: StepStats, step_s: float, num_accepted: int) -> StepStats:
        """The stats of the step that is done; the next ones are expected accordingly."""
        self.costs.observe(expected.num_decoded, expected.num_prefilled, expected.num_cells, step_s)
        return msgspec.structs.replace(expected, step_s=step_s, num_accepted=num_accepted)
