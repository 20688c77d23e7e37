"""Invalid settings are refused before a licence can be sent anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outbox.errors import ConfigError, Offline
from outbox.transport.beacon import BeaconTransport
from tests.transport.support.batches import FakeSettings


def refusal(url: str = "https://beacon.test", **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        BeaconTransport(FakeSettings(url, **settings))
    return str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://beacon.langchain.com/v1/beacon",
        "http://127.0.0.1:8080",
        "http://127.9.9.9",
        "http://localhost",
        "http://LOCALHOST.:1",
        "http://[::1]:8080/v1",
    ],
)
def test_https_anywhere_and_http_to_loopback_are_accepted(url: str) -> None:
    BeaconTransport(FakeSettings(url)).close()


@pytest.mark.parametrize(
    "url",
    ["http://beacon.langchain.com", "http://10.0.0.1", "http://localhost.evil.test", "http://127.0.0.1.evil.test"],
)
def test_http_to_another_host_is_refused_unless_it_is_allowed(url: str) -> None:
    assert "OUTBOX_ALLOW_HTTP" in refusal(url)
    BeaconTransport(FakeSettings(url, allow_http=True)).close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "beacon",
        "beacon.test/v1",
        "ftp://x",
        "https://",
        "https:///v1",
        "https://[::1",
        "https://x:0",
        "https://x:99999",
        "https://xn--",
        "https://x?a=1",
        "https://x#y",
        "\x00",
    ],
)
def test_what_is_no_base_url_is_refused(url: str) -> None:
    assert "OUTBOX_BEACON_URL" in refusal(url)


@pytest.mark.parametrize("url", ["https://user:hunter2@x", "https://hunter2@x", "http://u:hunter2@[::1"])
def test_a_url_with_credentials_is_refused_without_repeating_them(url: str) -> None:
    assert "hunter2" not in refusal(url)


@pytest.mark.parametrize("name", ["", "X Token", "Authorization:", "Content-Type", "HOST", "Idempotency-Key", "é"])
def test_a_header_that_cannot_carry_the_token_is_refused(name: str) -> None:
    assert "OUTBOX_TOKEN_HEADER" in refusal(token_header=name)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 3601.0])
def test_a_timeout_out_of_range_is_refused(seconds: float) -> None:
    assert "OUTBOX_REQUEST_TIMEOUT" in refusal(request_timeout=seconds)


def test_tls_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("not a certificate")
    cases: list[dict[str, Any]] = [{"ca_file": broken}, {"ca_file": tmp_path / "none"}, {"client_cert_file": broken}]
    for settings in cases:
        assert "OUTBOX_CA_FILE" in refusal(**settings)


def test_a_public_key_that_cannot_be_used_is_refused() -> None:
    assert "OUTBOX_TOKEN_PUBLIC_KEY_FILE" in refusal(token_public_key="no key")


def test_offline_no_transport_is_built() -> None:
    with pytest.raises(Offline, match="OUTBOX_OFFLINE"):
        BeaconTransport(FakeSettings("https://beacon.test", offline=True))
