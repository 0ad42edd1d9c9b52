"""How many examples property tests take: as written in each, or with scripts/test --fuzz more."""

LONGER = 20  # times, with --fuzz

factor = 1  # set before tests are collected


def examples(usual: int) -> int:
    return usual * factor
