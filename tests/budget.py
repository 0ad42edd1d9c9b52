"""How many examples property tests take: as written in each, or with scripts/test --fuzz more."""

factor = (
    1  # with --fuzz the minutes, as all together take about one; set before tests are collected
)


def examples(usual: int) -> int:
    return usual * factor
