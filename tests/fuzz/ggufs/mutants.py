"""Models that lie: small ones with one part of them changed. Seeded: a number makes a file.

Most are well-formed and lie about the model only, because those get furthest; the others are
damaged as a disk or a download damages them.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial, wraps
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests import tiny_encoders, tiny_models
from tests.fuzz.ggufs import settings, tensors, tokens
from tests.fuzz.ggufs.dissected import Model, take_apart

Writer = Callable[..., Path]
Change = Callable[[Random, Model], bytes]


class Mutant(NamedTuple):
    name: str  # of the model and of what was done to it
    content: bytes


def mutants(models: Mapping[str, Model], seed: int, count: int) -> Iterator[Mutant]:
    """Every mutation in turn, each time of another model."""
    for number in range(count):
        random = Random(f"{seed}-{number}")
        base = random.choice(sorted(models))
        change = CHANGES[number % len(CHANGES)]
        content = change(random, models[base])
        yield Mutant(f"{number:03}-{base}-{change.__name__}", content)


def base_models(folder: Path) -> dict[str, Model]:
    """One of each kind: dense, expert, windowed, recurrent, hybrid, encoder; three tokenizers."""
    write: dict[str, Writer] = {
        "llama": tiny_models.write_llama,
        "experts": partial(tiny_models.write_llama, experts=4, experts_used=2, tied=False),
        "qwen3": tiny_models.write_qwen3,
        "gemma3": partial(tiny_models.write_gemma3, layers=2),
        "mamba": tiny_models.write_mamba,
        "lfm2": partial(tiny_models.write_lfm2, layers=2),
        "bert": tiny_encoders.write_bert,
    }
    models = {name: take_apart(make(folder / f"{name}.gguf")) for name, make in write.items()}
    return models | {"bpe": tokens.with_bpe(models["llama"])}


# -- bytes ---------------------------------------------------------------------------------------


def truncated(random: Random, model: Model) -> bytes:
    content = model.encode()
    return content[
        : random.choice((random.randrange(len(content)), random.randrange(2000), len(content) - 1))
    ]


def flipped_bits(random: Random, model: Model) -> bytes:
    content = model.encode()
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 4, 64))):
        changed[_place(random, content)] ^= 1 << random.randrange(8)
    return bytes(changed)


def a_lost_or_doubled_piece(random: Random, model: Model) -> bytes:
    content = model.encode()
    start = _place(random, content)
    piece = content[start : start + random.choice((1, 4, 8, 100))]
    return (
        content[:start]
        + random.choice((b"", piece * 2, random.randbytes(4)))
        + content[start + len(piece) :]
    )


def an_overwritten_number(random: Random, model: Model) -> bytes:
    content = model.encode()
    start = _place(random, content)
    number = random.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1)).to_bytes(
        8, "little"
    )
    number = number[: random.choice((4, 8))]
    return content[:start] + number + content[start + len(number) :]


def _place(random: Random, content: bytes) -> int:
    """Mostly where the settings and the list of tensors are."""
    return random.choice(
        (random.randrange(900), random.randrange(len(content) // 8), random.randrange(len(content)))
    )


def _encoded(change: Callable[[Random, Model], Model]) -> Change:
    @wraps(change)
    def encoded(random: Random, model: Model) -> bytes:
        return change(random, model).encode()

    return encoded


CHANGES: tuple[Change, ...] = (
    *map(_encoded, (*settings.CHANGES, *tokens.CHANGES, *tensors.CHANGES)),
    *(truncated, flipped_bits, a_lost_or_doubled_piece, an_overwritten_number),
)
