import pytest

from llmserve.config.units import Duration, HostName, Origin, Size


@pytest.mark.parametrize(
    ("text", "size"),
    [("6GiB", 6 * 2**30), ("500 MB", 500_000_000), ("1.5kb", 1500), ("12B", 12)],
)
def test_sizes(text: str, size: int) -> None:
    assert Size.parse(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("10m", 600), ("1.5h", 5400), ("250ms", 0.25), ("0s", 0), ("1 d", 86400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration.parse(text) == seconds


@pytest.mark.parametrize("wrong", ["", "6", "GiB", "-1s", "6 apples", "1e3s", 6, None, True, "∞s"])
def test_anything_else_is_refused_with_an_example(wrong: object) -> None:
    with pytest.raises(ValueError, match="such as '6GiB'"):
        Size.parse(wrong)
    with pytest.raises(ValueError, match="such as '10m'"):
        Duration.parse(wrong)


@pytest.mark.parametrize(
    ("text", "name"),
    [("LLM.example.", "llm.example"), ("*.home.arpa", "*.home.arpa"), ("*", "*"), ("a_b", "a_b")],
)
def test_names_of_hosts(text: str, name: str) -> None:
    assert HostName.parse(text) == name


@pytest.mark.parametrize(
    "wrong", ["", "http://a", "a:80", "a/b", "*a", "a.*", "a..b", ".", 1, None]
)
def test_what_is_no_name_of_a_host_is_refused_with_an_example(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"without scheme, port and path, such as 'llm\.example'"):
        HostName.parse(wrong)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://App.example", "https://app.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("chrome-extension://abc", "chrome-extension://abc"),
        ("null", "null"),
        ("*", "*"),
    ],
)
def test_origins(text: str, origin: str) -> None:
    assert Origin.parse(text) == origin


@pytest.mark.parametrize(
    "wrong", ["", "a", "https://a/", "https://u@a", "https://", "*.a", 1, None]
)
def test_what_is_no_origin_is_refused_with_an_example(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"such as 'https://app\.example'"):
        Origin.parse(wrong)
