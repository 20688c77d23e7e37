"""Cache of beacon's short-lived token, with early refresh and one verify in flight.

         verify                refresh_at              expires_at
    ───────┬───────────────────────┬───────────────────────┬──────────▶ monotonic clock
           │ returned              │ returned; one caller  │ not returned: callers wait
           │                       │ verifies for the next │ for the one verify in flight

The lifetime is ``exp - iat``, measured on the monotonic clock from before the verify was sent, so a jump of the wall
clock does not matter. Without a configured public key the token is opaque: only the times of its claims are read, and
they are not trusted. With a key, a token that it did not sign is never used.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from outbox.core.receipt import Receipt, Verdict
from outbox.errors import ConfigError
from outbox.transport.secret import Secret

DEFAULT_LIFE_SECONDS = 300.0
MAX_LIFE_SECONDS = 24 * 3600.0
LEEWAY_SECONDS = 60.0

PublicKey = Ed25519PublicKey | RSAPublicKey | EllipticCurvePublicKey
Verify = Callable[[], Secret | Receipt]
"""Sends one verify to beacon: returns the token, or the receipt that says why there is none."""


@dataclass(frozen=True, slots=True)
class Held:
    """The current token. Times are on the monotonic clock."""

    token: Secret
    expires_at: float
    refresh_at: float


class TokenSource:
    """Returns the token and refreshes it. Safe to share between threads."""

    def __init__(
        self,
        verify: Verify,
        *,
        public_key: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._verify = verify
        self._key = load_public_key(public_key) if public_key else None
        self._clock = clock
        self._wall_clock = wall_clock
        self._jitter = jitter
        self._flight = threading.Lock()
        self._flights = 0
        self._held: Held | None = None
        self._outcome: Secret | Receipt | None = None

    def get(self) -> Secret | Receipt:
        """A valid token, or the receipt of the verify that failed."""
        held, now, flights = self._held, self._clock(), self._flights
        if held and now < held.refresh_at:
            return held.token
        if held and now < held.expires_at:
            return self._refreshed_if_free(held)
        with self._flight:
            return self._join(flights)

    def refresh(self) -> Secret | Receipt:
        """Verify now, even if the current token is valid. Returns the new token or the receipt of the failure."""
        with self._flight:
            return self._fly()

    def invalidate(self, token: Secret) -> None:
        """Drop ``token``, which beacon refused. A newer one that another thread has fetched meanwhile is kept."""
        with self._flight:
            if self._held and self._held.token == token:
                self._held = None

    def expires_in(self) -> float | None:
        """Seconds until the current token expires; None: there is no token."""
        held = self._held
        return max(0.0, held.expires_at - self._clock()) if held else None

    def last_failure(self) -> Receipt | None:
        """The receipt of the last verify if it failed, else None."""
        return self._outcome if isinstance(self._outcome, Receipt) else None

    def _refreshed_if_free(self, held: Held) -> Secret:
        """For a valid token that is due for a refresh: one caller refreshes it, the others return the old one.

        If the refresh fails, that caller returns the old one too.
        """
        if not self._flight.acquire(blocking=False):
            return held.token
        try:
            outcome = self._fly() if self._held is held else held.token
        finally:
            self._flight.release()
        return outcome if isinstance(outcome, Secret) else held.token

    def _join(self, flights: int) -> Secret | Receipt:
        """The outcome of a verify that ended while this caller waited for the lock, or else of a new one."""
        held = self._held
        if held and self._clock() < held.expires_at:
            return held.token
        if self._flights != flights and isinstance(self._outcome, Receipt):
            return self._outcome
        return self._fly()

    def _fly(self) -> Secret | Receipt:
        """Verify, and store the outcome. The lock is held."""
        started = self._clock()
        try:
            self._outcome = self._accepted(self._verify(), started)
        finally:
            self._flights += 1
        if isinstance(self._outcome, Receipt):
            self._put_off(self._outcome)
        return self._outcome

    def _accepted(self, outcome: Secret | Receipt, started: float) -> Secret | Receipt:
        if isinstance(outcome, Receipt):
            return outcome
        try:
            life = life_seconds(outcome, self._key, now=self._wall_clock())
        except (jwt.PyJWTError, ValueError, RecursionError) as exc:
            return _untrusted(exc)
        after = refresh_after(life, self._jitter())
        self._held = Held(outcome, expires_at=started + life, refresh_at=started + after)
        return outcome

    def _put_off(self, failure: Receipt) -> None:
        """Delay the next refresh after a failed one while the old token is valid, so that not every batch tries it."""
        held, now = self._held, self._clock()
        if held and now < held.expires_at:
            wait = max(1.0, min(60.0, (held.expires_at - now) / 2), failure.retry_after_seconds or 0.0)
            self._held = Held(held.token, held.expires_at, refresh_at=now + wait)


def life_seconds(token: Secret, key: PublicKey | None, *, now: float) -> float:
    """Seconds that a token may be used from ``now`` (epoch seconds). Raises jwt.PyJWTError if ``key`` did not sign it.

    It is ``exp - iat``, or ``exp - now`` without ``iat``, and at most 24 hours. It is five minutes if the token cannot
    be decoded, has no ``exp``, or the difference is not above zero.
    """
    claims = _verified_claims(token, key) if key else _opaque_claims(token)
    expires, issued = _number(claims.get("exp")), _number(claims.get("iat"))
    if expires is None:
        return DEFAULT_LIFE_SECONDS
    life = expires - (now if issued is None else issued)
    return min(life, MAX_LIFE_SECONDS) if life > 0 else DEFAULT_LIFE_SECONDS


def refresh_after(life: float, jitter: float) -> float:
    """Seconds after which a token with a lifetime of ``life`` seconds is refreshed.

    min(life - 60 s, 0.8 life), but 0.8 life if it is under two minutes, of which the minute would leave too little.
    ``jitter`` in 0..1 subtracts up to a tenth.
    """
    share = 0.8 * life
    after = min(life - 60.0, share) if life >= 120.0 else share
    return after * (1.0 - 0.1 * jitter)


def load_public_key(pem: str) -> PublicKey:
    """The public key of the tokens' signatures: Ed25519, RSA or EC P-256. Raises ConfigError for anything else."""
    try:
        key = load_pem_public_key(pem.encode())
    except ValueError as exc:
        raise ConfigError(
            "OUTBOX_TOKEN_PUBLIC_KEY_FILE holds no public key in PEM; its text begins -----BEGIN PUBLIC KEY-----"
        ) from exc
    if isinstance(key, Ed25519PublicKey | RSAPublicKey):
        return key
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return key
    raise ConfigError("OUTBOX_TOKEN_PUBLIC_KEY_FILE must hold an Ed25519, RSA or EC P-256 key (EdDSA, RS256, ES256)")


def _verified_claims(token: Secret, key: PublicKey) -> dict[str, object]:
    # The key determines the only algorithm: "none", and an HMAC with the public key as its secret, are impossible.
    return jwt.decode(
        token.reveal(),
        key,
        algorithms=[_algorithm(key)],
        options={"require": ["exp", "iat"], "verify_aud": False},
        leeway=LEEWAY_SECONDS,
    )


def _opaque_claims(token: Secret) -> dict[str, object]:
    try:
        return jwt.decode(token.reveal(), options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        return {}


def _algorithm(key: PublicKey) -> str:
    if isinstance(key, Ed25519PublicKey):
        return "EdDSA"
    return "RS256" if isinstance(key, RSAPublicKey) else "ES256"


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _untrusted(exc: Exception) -> Receipt:
    # Only the class name: a message of PyJWT may quote the token's header.
    return Receipt(
        verdict=Verdict.MISCONFIGURED,
        counted=False,
        reason=f"verify: beacon's token is not acceptable to OUTBOX_TOKEN_PUBLIC_KEY_FILE ({type(exc).__name__}); "
        "check the key and this machine's clock",
    )
