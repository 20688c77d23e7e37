"""The lifetime of the token, on a fake clock, with a verify that counts its calls."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from outbox.core.receipt import Receipt, Verdict
from outbox.errors import ConfigError
from outbox.transport.secret import Secret
from outbox.transport.token import (
    DEFAULT_LIFE_SECONDS,
    MAX_LIFE_SECONDS,
    TokenSource,
    life_seconds,
    load_public_key,
    refresh_after,
)
from tests.support.waiting import wait_until

NOW = 1_736_164_800
OUTAGE = Receipt(Verdict.UNAVAILABLE, counted=False, reason="verify: beacon answered 503 (unavailable)")


def opaque(**claims: Any) -> Secret:
    with warnings.catch_warnings():  # the key is short on purpose: nobody checks the signature
        warnings.simplefilter("ignore")
        return Secret(jwt.encode(claims, "irrelevant"))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeVerify:
    """Returns the given answers in turn; the last one is repeated."""

    def __init__(self, *outcomes: Secret | Receipt) -> None:
        self.outcomes = list(outcomes)
        self.calls = 0

    def __call__(self) -> Secret | Receipt:
        self.calls += 1
        return self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]


def lasting(seconds: float, name: str = "t") -> Secret:
    return opaque(iat=NOW, exp=NOW + seconds, jti=name)


def source_of(*outcomes: Secret | Receipt, **options: Any) -> tuple[TokenSource, FakeVerify, Clock]:
    clock, verify = Clock(), FakeVerify(*outcomes)
    defaults: dict[str, Any] = {"clock": clock, "wall_clock": lambda: float(NOW), "jitter": lambda: 0.0}
    return TokenSource(verify, **(defaults | options)), verify, clock


def test_a_token_is_asked_for_once_and_served_until_it_is_due() -> None:
    token = lasting(1000)
    source, verify, clock = source_of(token)
    assert source.get() == token
    clock.now += 799
    assert source.get() == token
    assert verify.calls == 1


def test_a_due_token_is_replaced_before_it_expires() -> None:
    old, new = lasting(1000, "old"), lasting(1000, "new")
    source, verify, clock = source_of(old, new)
    source.get()
    clock.now += 801
    assert source.get() == new
    assert verify.calls == 2


def test_the_old_token_serves_while_it_is_valid_when_a_refresh_fails() -> None:
    old, new = lasting(1000, "old"), lasting(1000, "new")
    source, verify, clock = source_of(old, OUTAGE, new)
    source.get()
    clock.now += 801
    assert source.get() == old
    assert source.last_failure() == OUTAGE
    assert source.get() == old
    assert verify.calls == 2, "the next refresh waits a while, not for the next batch"
    clock.now += 61
    assert source.get() == new
    assert source.last_failure() is None


def test_a_failed_refresh_waits_as_long_as_beacon_asks() -> None:
    patient = Receipt(Verdict.UNAVAILABLE, False, "busy", retry_after_seconds=150.0)
    source, verify, clock = source_of(lasting(1000), patient)
    source.get()
    clock.now += 801
    source.get()
    clock.now += 149
    source.get()
    assert verify.calls == 2


def test_an_expired_token_is_not_served_when_a_refresh_fails() -> None:
    source, verify, clock = source_of(lasting(1000), OUTAGE)
    source.get()
    clock.now += 1000
    assert source.get() == OUTAGE
    assert verify.calls == 2


def test_without_a_token_every_call_asks_again() -> None:
    source, verify, _ = source_of(OUTAGE, OUTAGE, lasting(60))
    assert source.get() == OUTAGE
    assert source.get() == OUTAGE
    assert isinstance(source.get(), Secret)
    assert verify.calls == 3


def test_an_invalidated_token_is_asked_for_again() -> None:
    old, new = lasting(1000, "old"), lasting(1000, "new")
    source, verify, _ = source_of(old, new)
    source.get()
    source.invalidate(old)
    assert source.get() == new
    source.invalidate(old)
    assert source.get() == new, "a late 401 on the old token does not take the new one"
    assert verify.calls == 2


def test_refresh_asks_whatever_is_held() -> None:
    source, verify, _ = source_of(lasting(1000, "old"), lasting(1000, "new"))
    source.get()
    assert source.refresh() == lasting(1000, "new")
    assert verify.calls == 2


def test_the_life_counts_from_before_the_verify_was_sent() -> None:
    clock = Clock()

    def slow_verify() -> Secret:
        clock.now += 30
        return lasting(100)

    source = TokenSource(slow_verify, clock=clock, wall_clock=lambda: float(NOW), jitter=lambda: 0.0)
    source.get()
    assert source.expires_in() == 70


def test_a_jump_of_the_wall_clock_changes_nothing() -> None:
    wall = [float(NOW)]
    source, verify, clock = source_of(lasting(1000), wall_clock=lambda: wall[0])
    wall[0] += 10**9
    source.get()
    wall[0] -= 2 * 10**9
    clock.now += 700
    source.get()
    assert (verify.calls, source.expires_in()) == (1, 300)


class CountedLock:
    """A lock that counts its callers: by then each has read all the state that it decides by."""

    def __init__(self) -> None:
        self.asked = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self.asked += 1
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def in_flight(outcome: Secret | Receipt, callers: int) -> tuple[list[Secret | Receipt], int]:
    """Several threads ask for a token during one blocked verify. Returns what they got, and the number of verifies."""
    lock, release = CountedLock(), threading.Event()
    calls: list[int] = []

    def held_back() -> Secret | Receipt:
        calls.append(1)
        assert release.wait(30)
        return outcome

    source = TokenSource(held_back)
    source._flight = lock  # type: ignore[assignment]
    with ThreadPoolExecutor(callers) as pool:
        futures = [pool.submit(source.get) for _ in range(callers)]
        wait_until(lambda: lock.asked == callers)
        release.set()
        return [future.result(30) for future in futures], len(calls)


def test_many_callers_share_one_verify() -> None:
    token = lasting(1000)
    assert in_flight(token, 6) == ([token] * 6, 1)


def test_many_callers_share_the_failure_of_one_verify() -> None:
    assert in_flight(OUTAGE, 6) == ([OUTAGE] * 6, 1)


def test_a_valid_token_is_served_while_another_caller_refreshes() -> None:
    old = lasting(1000, "old")
    source, _, clock = source_of(old)
    source.get()
    clock.now += 801
    inside: list[Secret | Receipt] = []

    def refresh_and_look() -> Secret | Receipt:
        with ThreadPoolExecutor(1) as pool:
            inside.append(pool.submit(source.get).result(30))
        return lasting(1000, "new")

    source._verify = refresh_and_look
    assert source.get() == lasting(1000, "new")
    assert inside == [old]


def test_a_verify_that_raises_leaves_the_source_usable() -> None:
    def broken() -> Secret:
        raise KeyError("a bug")

    source, _, _ = source_of(lasting(60))
    good, source._verify = source._verify, broken
    with pytest.raises(KeyError):
        source.get()
    source._verify = good
    assert isinstance(source.get(), Secret)


@pytest.mark.parametrize(
    ("claims", "life"),
    [
        ({"iat": NOW, "exp": NOW + 5}, 5),
        ({"iat": NOW - 10**7, "exp": NOW - 10**7 + 600}, 600),
        ({"exp": NOW + 700}, 700),
        ({"iat": "x", "exp": NOW + 700}, 700),
        ({"iat": NOW, "exp": NOW + 10**9}, MAX_LIFE_SECONDS),
        ({"iat": NOW, "exp": 1e300}, MAX_LIFE_SECONDS),
        ({"iat": NOW, "exp": NOW + 1.5}, 1.5),
        ({"iat": NOW, "exp": NOW}, DEFAULT_LIFE_SECONDS),
        ({"iat": NOW, "exp": NOW - 1}, DEFAULT_LIFE_SECONDS),
        ({"exp": NOW - 1}, DEFAULT_LIFE_SECONDS),
        ({"iat": NOW, "exp": True}, DEFAULT_LIFE_SECONDS),
        ({"iat": NOW, "exp": "soon"}, DEFAULT_LIFE_SECONDS),
        ({"iat": NOW, "exp": float("nan")}, DEFAULT_LIFE_SECONDS),
        ({"iat": NOW, "exp": 10**400}, DEFAULT_LIFE_SECONDS),
        ({"iat": NOW}, DEFAULT_LIFE_SECONDS),
        ({}, DEFAULT_LIFE_SECONDS),
    ],
)
def test_the_life_of_an_opaque_token(claims: dict[str, Any], life: float) -> None:
    assert life_seconds(opaque(**claims), None, now=NOW) == life


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1))
def test_an_undecodable_token_lives_five_minutes(text: str) -> None:
    assert life_seconds(Secret(text), None, now=NOW) == DEFAULT_LIFE_SECONDS


@given(st.floats(0.001, MAX_LIFE_SECONDS), st.floats(0, 1))
def test_a_refresh_comes_before_the_end_of_any_life(life: float, jitter: float) -> None:
    after = refresh_after(life, jitter)
    assert 0 < after <= 0.8 * life


@pytest.mark.parametrize(("life", "after"), [(5, 4), (60, 48), (120, 60), (200, 140), (300, 240), (3600, 2880)])
def test_a_refresh_is_due_a_minute_or_a_fifth_before_the_end(life: float, after: float) -> None:
    assert refresh_after(life, 0.0) == pytest.approx(after)
    assert refresh_after(life, 1.0) == pytest.approx(0.9 * after)


ED, RSA, EC = (
    ed25519.Ed25519PrivateKey.generate(),
    rsa.generate_private_key(public_exponent=65537, key_size=2048),
    ec.generate_private_key(ec.SECP256R1()),
)
SIGNERS: dict[str, Any] = {"EdDSA": ED, "RS256": RSA, "ES256": EC}


def pem(key: Any) -> str:
    raw: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return raw.decode()


def signed(algorithm: str, key: Any = None, **claims: Any) -> Secret:
    now = int(time.time())
    return Secret(jwt.encode({"iat": now, "exp": now + 600} | claims, key or SIGNERS[algorithm], algorithm))


@pytest.mark.parametrize("algorithm", SIGNERS)
def test_a_token_signed_by_the_configured_key_is_used(algorithm: str) -> None:
    token = signed(algorithm, aud="anyone")
    source, _, clock = source_of(token, public_key=pem(SIGNERS[algorithm]))
    assert source.get() == token
    assert source.expires_in() == 600
    assert clock.now == 1000


def without(claim: str) -> Secret:
    claims = {"iat": int(time.time()), "exp": int(time.time()) + 600}
    del claims[claim]
    return Secret(jwt.encode(claims, ED, "EdDSA"))


def confused(public: str) -> Secret:
    """HS256 with the public key as its secret (algorithm confusion), built by hand because PyJWT refuses to."""
    import base64
    import hashlib
    import hmac

    def part(raw: bytes) -> bytes:
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    claims = b'{"iat":%d,"exp":%d}' % (time.time(), time.time() + 600)
    message = part(b'{"alg":"HS256","typ":"JWT"}') + b"." + part(claims)
    return Secret((message + b"." + part(hmac.digest(public.encode(), message, hashlib.sha256))).decode())


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: signed("EdDSA", ed25519.Ed25519PrivateKey.generate()), id="another key"),
        pytest.param(lambda: signed("RS256"), id="another algorithm"),
        pytest.param(lambda: Secret(jwt.encode({"iat": 1, "exp": 2**31}, "", "none")), id="none"),
        pytest.param(lambda: confused(pem(ED)), id="key confusion"),
        pytest.param(lambda: signed("EdDSA", exp=int(time.time()) - 120), id="expired"),
        pytest.param(lambda: signed("EdDSA", iat=int(time.time()) + 300), id="from the future"),
        pytest.param(lambda: without("exp"), id="no exp"),
        pytest.param(lambda: without("iat"), id="no iat"),
        pytest.param(lambda: Secret("rubbish"), id="rubbish"),
    ],
)
def test_a_token_that_the_configured_key_disowns_is_never_used(make: Callable[[], Secret]) -> None:
    token = make()
    source, _, _ = source_of(token, public_key=pem(ED))
    outcome = source.get()
    assert isinstance(outcome, Receipt)
    assert (outcome.verdict, outcome.counted) == (Verdict.MISCONFIGURED, False)
    assert "OUTBOX_TOKEN_PUBLIC_KEY_FILE" in outcome.reason
    assert token.reveal() not in outcome.reason
    assert source.expires_in() is None


@pytest.mark.parametrize("drift", [-50, 50])
def test_a_minute_of_drift_between_the_clocks_is_tolerated(drift: int) -> None:
    now = int(time.time()) + drift
    source, _, _ = source_of(signed("EdDSA", iat=now, exp=now + 30), public_key=pem(ED))
    assert isinstance(source.get(), Secret)


def private_pem() -> str:
    return ED.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("not a key", id="no PEM"),
        pytest.param("schlüssel", id="not ASCII"),
        pytest.param(private_pem(), id="a private key"),
        pytest.param(pem(ec.generate_private_key(ec.SECP384R1())), id="another curve"),
    ],
)
def test_a_key_that_cannot_verify_tokens_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match="OUTBOX_TOKEN_PUBLIC_KEY_FILE") as caught:
        load_public_key(text)
    assert "PRIVATE" not in str(caught.value)
