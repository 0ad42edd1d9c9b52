"""Requests that are asked again, because their process died while they waited there."""

import logging

from llmserve.errors import RequestLostError

log = logging.getLogger(__name__)


class Retries:
    """Those of one request: two, but only one if it may itself be what kills the process."""

    def __init__(self) -> None:
        self._num_left = 2

    def note(self, error: RequestLostError) -> None:
        """Raises `error` if there is none left."""
        self._num_left -= 2 if error.is_suspect else 1
        if self._num_left < 0:
            raise error
        log.info("%s; a request that waited there is asked again", error.message)
