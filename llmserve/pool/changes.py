"""Waiting for whatever happens next in the pool."""

import asyncio


class Changes:
    """Wakes all that waits, at every change. Lives on the event loop."""

    def __init__(self) -> None:
        self._next = asyncio.Event()  # set once, and replaced

    def notify(self) -> None:
        self._next.set()
        self._next = asyncio.Event()

    async def next(self, timeout_s: float) -> None:
        """Returns when something has changed, or in time."""
        changed = asyncio.ensure_future(self._next.wait())
        try:
            await asyncio.wait([changed], timeout=timeout_s)
        finally:
            changed.cancel()
