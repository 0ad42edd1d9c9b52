"""What HTTP says of models whose process dies."""

from collections.abc import Iterator

import pytest

from llmserve.errors import EngineCrashedError
from llmserve.pool import model as pool_model
from llmserve.pool.model import State
from tests.serving import FakeService, fake_service, wait_until

ASK = {"prompt": "hello", "mode": "completion", "parameters": {"max_tokens": 2}}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    """Its default model has killed three processes at start-up; another stands in if told to."""
    monkeypatch.setattr(pool_model, "FIRST_PAUSE_S", 0.0)
    error = EngineCrashedError("the process of model 'fake' was killed by signal 6")
    error.log_lines = ("GGML_ASSERT(false) failed",)
    with fake_service(load_error=error) as running:
        running.num_expected_errors = 5  # each crash, the quarantine, the load
        wait_until(lambda: running.state is State.QUARANTINED, "the quarantine")
        yield running


def test_a_quarantine_is_shown_and_told(service: FakeService) -> None:
    (model,) = service.get("/models").json()["models"]
    assert (model["state"], model["crashes"], model["pid"]) == ("quarantined", 3, None)
    assert model["log"] == ["GGML_ASSERT(false) failed"]
    for response in (service.post(ASK), service.get("/ready")):
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (503, "model_quarantined")
        assert "killed by signal 6" in error["message"]
        assert error["message"] == model["error"]
    assert service.metric("llmserve_requests_total", outcome="model_quarantined") == 1


def test_a_load_by_hand_ends_it(service: FakeService) -> None:
    service.load_error = None
    assert service.post(ASK).status_code == 503
    response = service.post({}, "/models/fake/load")
    assert (response.status_code, response.json()["state"]) == (200, "ready")
    assert service.post(ASK).status_code == 200
