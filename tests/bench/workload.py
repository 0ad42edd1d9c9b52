"""What is asked in the benchmarks: short, distinct prompts, so that no prefix cache helps."""

TOPICS = (
    "a lighthouse keeper", "the history of bread", "how rivers shape land", "a lost violin",
    "why cats purr", "building a small boat", "the colour of the sky", "a market in the morning",
    "how clocks work", "a letter from the sea", "the first winter snow", "growing tomatoes",
    "an old railway line", "how birds find their way", "a quiet library", "the taste of salt",
    "a bridge in the fog", "why leaves fall", "the night watch", "a painter's apprentice",
    "how bees talk", "the road to the coast", "a broken radio", "a garden on the roof",
    "the last ferry", "how glass is made", "a map without names", "the sound of rain",
    "a baker's dozen", "two friends and a kite", "the long way home", "a winter in the hut",
)  # fmt: skip


def prompts(count: int, *, salt: int = 0) -> list[str]:
    """`count` different prompts of about 20 tokens; another `salt`, other prompts."""
    return [
        f"Number {salt * count + i}. Here is a long and detailed text about"
        f" {TOPICS[i % len(TOPICS)]}, written for curious readers:\n"
        for i in range(count)
    ]


def short_texts(count: int, *, salt: int = 0) -> list[str]:
    """`count` different texts of about 6 tokens, such as a search has; another `salt`, others."""
    return [f"{TOPICS[i % len(TOPICS)]} {salt * count + i}" for i in range(count)]
