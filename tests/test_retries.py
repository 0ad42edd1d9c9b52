import pytest

from llmserve.errors import RequestLostError
from llmserve.retries import Retries


def lost(*, is_suspect: bool) -> RequestLostError:
    error = RequestLostError("gone")
    error.is_suspect = is_suspect
    return error


@pytest.mark.parametrize(
    ("suspicions", "num_retries"),
    [
        ([False, False, False], 2),
        ([True, True], 1),
        ([False, True], 1),
        ([True, False], 1),
    ],
)
def test_so_often_and_no_more(suspicions: list[bool], num_retries: int) -> None:
    retries = Retries()
    errors = [lost(is_suspect=each) for each in suspicions]
    for error in errors[:num_retries]:
        retries.note(error)
    with pytest.raises(RequestLostError) as raised:
        retries.note(errors[num_retries])
    assert raised.value is errors[num_retries]
