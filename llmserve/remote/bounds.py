"""What no answer of a provider may exceed."""

from msgspec import Struct


class Bounds(Struct, frozen=True):
    """Tests have smaller ones."""

    connect_s: float = 5.0
    answer_s: float = 3600.0
    answer_bytes: int = 512 << 20  # an event of a token is 0.2 to 3 kB on the wire
    event_bytes: int = 1 << 20
