"""How much may be in a constraint of any kind: what costs llguidance too much time or stack."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from llmserve.errors import InvalidRequestError

MAX_SOURCE_BYTES = 64 * 1024
# What may match in many ways, `x?` and its like, in all regular expressions of a constraint. A
# chain of more is refused by llguidance anyway, but after time that grows with its square.
MAX_QUANTIFIERS = 300
MAX_COUNT = 2_000  # of what must be repeated, and …
MAX_LITERAL_LEN = 8 * 1024  # … characters in a row that must come: each mask tokenizes them again

_QUANTIFIER = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[?*]|\{\d[\d, ]*\}", re.DOTALL
)  # and what only looks like one


def check_size(source: str, field: str, max_bytes: int) -> None:
    try:
        num_bytes = len(source.encode())
    except UnicodeEncodeError as error:
        raise refusal(field, "it has half of a surrogate pair") from error
    if num_bytes > max_bytes:
        raise refusal(field, f"it has {num_bytes} bytes, over {max_bytes}")


def check_patterns(patterns: Sequence[str], field: str) -> None:
    """Of regular expressions."""
    check_literals((part for p in patterns for part in re.split(r"[|?*+{([.]", p)), field)
    check_quantifiers((q for pattern in patterns for q in _QUANTIFIER.findall(pattern)), field)


def check_literals(texts: Iterable[Any], field: str) -> None:
    for text in texts:
        if isinstance(text, str) and len(text) > MAX_LITERAL_LEN:
            raise refusal(field, f"it has a text of {len(text)} characters, over {MAX_LITERAL_LEN}")


def check_quantifiers(found: Iterable[str], field: str) -> None:
    count = 0
    for quantifier in found:
        count += quantifier[:1] in ("?", "*", "{")
        least = re.match(r"\{(\d+)", quantifier)
        if least and len(least[1]) < 12 and int(least[1]) > MAX_COUNT:
            raise refusal(field, f"{quantifier} repeats more than {MAX_COUNT} times")
    if count > MAX_QUANTIFIERS:
        raise refusal(field, f"it has {count} times ?, * or {{}}, over {MAX_QUANTIFIERS}")


def refusal(field: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field} cannot be used: {reason}", param=field)
