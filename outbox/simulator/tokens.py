"""Short-lived JWTs, signed with EdDSA. The key is new for each simulator."""

from __future__ import annotations

import secrets
import threading
from enum import Enum

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


class TokenState(Enum):
    VALID = "valid"
    EXPIRED = "expired"
    UNKNOWN = "unknown"


class Mint:
    """Issues tokens and remembers them: a token is valid if this mint issued it and it has not expired."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self._ends: dict[str, float] = {}
        self._lock = threading.Lock()
        self.public_pem = (
            self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")
        )

    def __repr__(self) -> str:
        return f"Mint(given={len(self._ends)})"

    def give(self, life_seconds: float, *, now: float, monotonic: float) -> str:
        """A new token. ``now``: epoch seconds for its claims; ``monotonic``: monotonic seconds for its expiry."""
        issued_at = int(now)
        life = int(life_seconds) if life_seconds == int(life_seconds) else life_seconds
        claims = {
            "iss": "beacon-simulator",
            "iat": issued_at,
            "exp": issued_at + life,
            "jti": secrets.token_hex(8),
        }
        token = jwt.encode(claims, self._key, algorithm="EdDSA")
        with self._lock:
            self._ends[token] = monotonic + life_seconds
        return token

    def state(self, token: str, *, monotonic: float) -> TokenState:
        end = self._ends.get(token)
        if end is None:
            return TokenState.UNKNOWN
        return TokenState.VALID if monotonic < end else TokenState.EXPIRED

    def revoke(self) -> None:
        """Forget every token issued so far."""
        with self._lock:
            self._ends.clear()
