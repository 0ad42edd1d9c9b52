"""The addresses of one model: which to ask, how many requests each answers, and its breaker."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from llmserve.errors import ProviderUnreachableError
from llmserve.remote import retry
from llmserve.remote.breaker import Breaker, BreakerState
from llmserve.remote.errors import AttemptError

log = logging.getLogger(__name__)


class Address:
    """Its state, written by `Addresses` only."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.host = urlsplit(url).netloc
        self.breaker = Breaker()
        self.num_active = 0  # requests that it answers now
        self.error: str | None = None  # the last failure; None since the last success

    @property
    def state(self) -> BreakerState:
        return self.breaker.state(time.monotonic())


class Addresses:
    def __init__(self, urls: Sequence[str], on_attempt: Callable[[str], None]) -> None:
        """`on_attempt` is told how each attempt ended: "ok", or the code of an error."""
        self.all = [Address(url) for url in urls]
        self._on_attempt = on_attempt

    @property
    def state(self) -> BreakerState:
        """Of the best one."""
        states = {address.state for address in self.all}
        order = (BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN)
        return next(state for state in order if state in states)

    @property
    def error(self) -> str | None:
        """What was last wrong, while anything is."""
        return "; ".join(a.error for a in self.all if a.error) or None

    def choose(self, failed: Sequence[Address]) -> Address | None:
        """The one to ask next by a request that `failed` at some; None if all are to be spared."""
        now_s = time.monotonic()
        loads = [
            retry.Load(a.num_active, failed.count(a), a.breaker.wait_s(now_s)) for a in self.all
        ]
        index = retry.choose(loads)
        return None if index is None else self.all[index]

    @contextmanager
    def attempt(self, address: Address, deadline: asyncio.Timeout) -> Iterator[None]:
        """The time of one attempt; tells the breaker how it ended.

        A cancellation by `deadline` is the address's fault, any other is not.
        """
        breaker = address.breaker
        is_trial = breaker.enter(time.monotonic())
        with self.busy(address):
            try:
                yield
            except AttemptError as error:
                self._on_attempt(error.error.code)
                if error.is_outage:
                    self._fail(address, error.error.log_message, is_trial=is_trial)
                else:
                    self._succeed(address)  # it is there, and speaks
                raise
            except asyncio.CancelledError:
                if deadline.expired():
                    self._on_attempt("provider_timeout")
                    what = f"the provider at {address.host} did not begin an answer in time"
                    self._fail(address, what, is_trial=is_trial)
                else:
                    breaker.leave(is_trial=is_trial)
                raise
            except BaseException:
                breaker.leave(is_trial=is_trial)
                raise
            self._on_attempt("ok")
            self._succeed(address)

    @contextmanager
    def busy(self, address: Address) -> Iterator[None]:
        address.num_active += 1
        try:
            yield
        finally:
            address.num_active -= 1

    def spared(self) -> ProviderUnreachableError:
        """When `choose` finds none."""
        now_s = time.monotonic()
        wait_s = math.ceil(min(address.breaker.wait_s(now_s) for address in self.all))
        return ProviderUnreachableError(
            f"{self.error}; after several failures it is asked again in {wait_s} s",
            retry_after_s=wait_s,
        )

    def _succeed(self, address: Address) -> None:
        address.error = None
        address.breaker.succeed()

    def _fail(self, address: Address, what: str, *, is_trial: bool) -> None:
        address.error = what
        now_s = time.monotonic()
        address.breaker.fail(now_s, is_trial=is_trial)
        if wait_s := address.breaker.wait_s(now_s):
            log.info("%s is not asked for %.0f s: %s", address.host, wait_s, what)
