import pytest

from llmserve.registry.units import Duration, Size


@pytest.mark.parametrize(
    ("text", "size"),
    [("6GiB", 6 * 2**30), ("500 MB", 500_000_000), ("1.5kb", 1500), ("12B", 12)],
)
def test_sizes(text: str, size: int) -> None:
    assert Size.parse(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("10m", 600), ("1.5h", 5400), ("250ms", 0.25), ("0s", 0), ("1 d", 86400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration.parse(text) == seconds


@pytest.mark.parametrize("wrong", ["", "6", "GiB", "-1s", "6 apples", "1e3s", 6, None, True, "∞s"])
def test_anything_else_is_refused_with_an_example(wrong: object) -> None:
    with pytest.raises(ValueError, match="such as '6GiB'"):
        Size.parse(wrong)
    with pytest.raises(ValueError, match="such as '10m'"):
        Duration.parse(wrong)
