"""Fixtures that several test packages share."""

import math
import os
import re
import signal
from collections.abc import Iterator

import hypothesis
import pytest

from tests import budget
from tests.serving import FakeService, fake_service

# Where another process takes a core, OpenMP's threads by default spin through whole time slices
# at each of llama.cpp's barriers, and a token takes a second. Tests are often run beside other
# work and measure no speed, so their threads soon sleep instead. Read when libgomp is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# A shell's background jobs ignore Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# As with the threads, no example of a property test is too slow.
hypothesis.settings.register_profile("llmserve", deadline=None)
hypothesis.settings.load_profile("llmserve")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-minutes", type=float, default=0, help="how long to fuzz; 0: as in every run"
    )


# What loads weights or runs whole programs, by folder or by the end of the file's name.
_SLOW = re.compile(
    r"tests/(bench|cli|clients|deploy|e2e|security|engine/llama)/"
    r"|_(real|llama)\.py$"
    r"|/test_(gateway_crashes|gguf|loader|otlp|unconstrainable)\.py$"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _SLOW.search(item.path.as_posix()):
            item.add_marker("slow")


def pytest_configure(config: pytest.Config) -> None:
    budget.factor = max(1, math.ceil(config.getoption("--fuzz-minutes")))


@pytest.fixture(scope="module")
def service() -> Iterator[FakeService]:
    """A server over a fake model that answers at once; shared by the tests of a module."""
    with fake_service() as running:
        yield running
        running.wait_idle()
