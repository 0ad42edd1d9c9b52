import logging

import pytest

from llmserve.auth.keyring import check_exposure
from llmserve.errors import ConfigError

LOOPBACK = ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"]
EXPOSED = ["0.0.0.0", "192.168.1.2", "10.0.0.1", "8.8.8.8", "::", "fe80::1%eth0", "::ffff:1.2.3.4"]


@pytest.mark.parametrize("address", LOOPBACK)
def test_nobody_else_reaches_loopback(address: str, caplog: pytest.LogCaptureFixture) -> None:
    check_exposure(address, has_keys=False, is_insecure_meant=False)
    check_exposure(address, has_keys=False, is_insecure_meant=True)
    assert not caplog.records


@pytest.mark.parametrize("address", EXPOSED)
def test_others_need_a_key(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError) as caught:
        check_exposure(address, has_keys=False, is_insecure_meant=False)
    for word in (address, "LLMSERVE_API_KEYS", "api_keys_file", "--insecure-no-auth", "127.0.0.1"):
        assert word in caught.value.message
    check_exposure(address, has_keys=True, is_insecure_meant=False)
    assert not caplog.records


def test_a_server_that_is_open_on_purpose_says_so(caplog: pytest.LogCaptureFixture) -> None:
    check_exposure("0.0.0.0", has_keys=False, is_insecure_meant=True)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING


def test_the_flag_does_not_go_with_keys() -> None:
    with pytest.raises(ConfigError, match="--insecure-no-auth"):
        check_exposure("0.0.0.0", has_keys=True, is_insecure_meant=True)
