"""Not a target: what a broken property looks like."""


def check_broken(data: bytes) -> None:
    assert b"!" not in data, "there is a !"
