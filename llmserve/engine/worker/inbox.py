"""Commands for the worker's thread, and the interruption of what it computes meanwhile.

The sender of a command first puts it, then looks at what is computed; the worker first says what it
computes, then looks for commands. So either the sender sees what to abort, or the worker sees the
command. Both at once cost no more than one more plan.
"""

import queue

from llmserve.engine.messages import Command
from llmserve.engine.runtime import Runtime

INTERRUPT_FROM = 32  # a step with fewer prompt tokens ends soon enough by itself


class Inbox:
    """`put` may be called in any thread, all else in the worker's."""

    def __init__(self, runtime: Runtime) -> None:
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._runtime = runtime
        self.computing: int | None = None  # the request that can be interrupted

    def put(self, command: Command, *, interrupts: int | None = None) -> None:
        """`interrupts` is the request that need not be computed to its end now."""
        self._commands.put(command)
        if interrupts is not None and self.computing == interrupts:
            self._runtime.abort()

    def get(self, timeout: float | None = None) -> Command:
        """The next command, as soon as there is one."""
        return self._commands.get(timeout=timeout)

    def empty(self) -> bool:
        return self._commands.empty()

    def begin(self, request_id: int) -> bool:
        """This is computed from now on, until `end`; False: a command came first, do not begin."""
        self.computing = request_id
        if not self.empty():
            self.end()
        return self.computing is not None

    def end(self) -> None:
        self.computing = None
