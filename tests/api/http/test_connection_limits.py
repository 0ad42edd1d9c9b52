import logging
import resource
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.api.http.connection_limits import Admission, allowed_connections


class Client:
    """A connection that is gone as soon as it is evicted."""

    def __init__(self, alive: set["Client"]) -> None:
        self._alive = alive
        alive.add(self)

    def evict(self) -> None:
        self._alive.remove(self)


@given(st.integers(1, 5), st.lists(st.sampled_from(["come", "ask", "end"]), max_size=60))
def test_room_is_made_by_who_waited_longest(max_connections: int, steps: list[str]) -> None:
    admission = Admission(max_connections)
    alive: set[Client] = set()
    waiting: list[Client] = []
    answered: list[Client] = []
    leaving: list[Client] = []
    for step in steps:
        if step == "come":
            client = Client(alive)
            admission.wait(client)
            if admission.admit(client, len(alive)):
                waiting.append(client)
                if len(waiting) + len(answered) > max_connections:
                    assert waiting.pop(0) not in alive
            else:
                assert len(answered) == max_connections
                admission.leave(client)
                leaving.append(client)
        elif step == "ask" and waiting:
            answered.append(waiting.pop())
            admission.forget(answered[-1])
        elif step == "end" and answered:
            waiting.append(answered.pop(0))
            admission.wait(waiting[-1])
        assert alive == {*waiting, *answered, *leaving}
        assert len(waiting) + len(answered) <= max_connections


def test_few_stay_to_be_told_that_they_are_refused() -> None:
    admission = Admission(1)
    alive: set[Client] = set()
    for _ in range(1000):
        admission.leave(Client(alive))
    assert len(alive) == 64


@pytest.fixture
def descriptors() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_of_descriptors_is_raised(descriptors: tuple[int, int]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, descriptors[1]))
    assert allowed_connections(1000) == 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert 1000 < soft <= hard == descriptors[1]


def test_a_higher_limit_stays(descriptors: tuple[int, int]) -> None:
    assert allowed_connections(1) == 1
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == descriptors


def test_fewer_are_allowed_than_there_are_descriptors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: given.append(limits))
    with caplog.at_level(logging.WARNING):
        assert allowed_connections(4096) == 1024 - 256
    assert given == [(1024, 1024)]
    assert "ulimit -n 4352" in caplog.text
