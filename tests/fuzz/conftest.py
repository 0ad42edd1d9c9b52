"""How long to fuzz: a fixed number of inputs, or minutes (scripts/test --fuzz MINUTES)."""

import pytest


@pytest.fixture(scope="session")
def fuzz_minutes(pytestconfig: pytest.Config) -> float:
    """For all that is fuzzed together; 0: the fixed numbers of a usual run."""
    return float(pytestconfig.getoption("--fuzz-minutes"))
