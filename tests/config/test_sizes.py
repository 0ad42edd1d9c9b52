import pytest

from llmserve.config.units import human


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9_949, "9.9 kB"),
        (9_960, "10 kB"),
        (98_000_000, "98 MB"),
        (999_600_000, "1.0 GB"),
        (4_683_000_000, "4.7 GB"),
        (70_000_000_000, "70 GB"),
        (1_500_000_000_000, "1.5 TB"),
    ],
)
def test_human(size_bytes: int, shown: str) -> None:
    assert human(size_bytes) == shown
