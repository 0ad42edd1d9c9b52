"""Fixtures that several test packages share."""

from collections.abc import Iterator

import pytest

from tests.serving import FakeService, fake_service


@pytest.fixture(scope="module")
def service() -> Iterator[FakeService]:
    """A server over a fake model that answers at once; shared by the tests of a module."""
    with fake_service() as running:
        yield running
        running.wait_idle()
