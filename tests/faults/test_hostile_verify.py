"""Where the licence and the token go when beacon means harm: to no other host, and nowhere without a usable token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from tests.faults import hostile
from tests.faults.hostile import ATTEMPTS_TO_PAUSE, Victim, inserted, noted, ok, verified, victim_of, well
from tests.support.intervals import intervals
from tests.transport.support.raw_server import JSON, RawServer, Reply, answer

GOOD = b'{"inserted_count":2}'
USAGE, VERIFY = "/ingest-traces", "/verify"


@pytest.fixture
def victim(beacon_host: RawServer, tmp_path: Path) -> Iterator[Victim]:
    with victim_of(beacon_host, tmp_path) as victim:
        yield victim


# --- another host -----------------------------------------------------------------------------------------

REDIRECTS = (300, 301, 302, 303, 304, 305, 307, 308)


def pointing_elsewhere(status: int, other: RawServer, path: str) -> Reply:
    """Every header that has ever sent a client somewhere else."""
    url = f"{other.url}{path}"
    headers = {
        "Location": url,
        "Content-Location": url,
        "Refresh": f"0; url={url}",
        "Link": f'<{url}>; rel="canonical"',
        "Alt-Svc": f'http/1.1="127.0.0.1:{other.port}"; ma=3600',
        "WWW-Authenticate": f'Bearer realm="{url}"',
        "Set-Cookie": "session=planted; Path=/",
    }
    return answer(status, GOOD if status < 300 else b"", JSON | headers)


def assert_unreached(other: RawServer) -> None:
    """Nothing has reached it, and not because it cannot be reached."""
    assert (other.connections, other.seen) == (0, [])
    assert httpx.post(f"{other.url}/ingest-traces", trust_env=False, timeout=60).json() == {"inserted_count": 2}
    assert other.connections == 1


@pytest.mark.parametrize("status", REDIRECTS)
def test_a_redirect_of_a_batch_leads_nowhere(
    victim: Victim, beacon_host: RawServer, other_host: RawServer, status: int
) -> None:
    ids = victim.box.put(*intervals(2))
    beacon_host.on(USAGE, pointing_elsewhere(status, other_host, USAGE))
    assert victim.until_paused() == (
        f"beacon answered {status}, and a redirect is never followed (misconfigured); check OUTBOX_BEACON_URL"
    )
    assert victim.find(ids[0]).num_failed_send_attempts == 0
    assert_unreached(other_host)
    victim.must_recover(ids, attempts=0)


@pytest.mark.parametrize("status", REDIRECTS)
def test_a_redirect_of_verify_leads_nowhere(
    victim: Victim, beacon_host: RawServer, other_host: RawServer, status: int
) -> None:
    victim.box.put(*intervals(2))
    beacon_host.on(VERIFY, pointing_elsewhere(status, other_host, VERIFY))
    assert victim.until_paused().startswith(f"verify: beacon answered {status}, and a redirect is never followed")
    assert beacon_host.posts(USAGE) == []
    assert_unreached(other_host)


@pytest.mark.parametrize("status", [200, 201, 202, 401, 403, 407, 503])
def test_an_answer_that_points_to_another_host_sends_nothing_there(
    victim: Victim, beacon_host: RawServer, other_host: RawServer, status: int
) -> None:
    victim.box.put(*intervals(2))
    beacon_host.on(USAGE, pointing_elsewhere(status, other_host, USAGE), inserted(2))
    victim.until(lambda: victim.lane().sent == 2)
    assert len(beacon_host.posts(USAGE)) == (1 if status < 300 else 2)
    assert all("cookie" not in seen.headers for seen in beacon_host.seen)
    assert_unreached(other_host)


# --- verify -----------------------------------------------------------------------------------------------

NO_TOKEN: dict[str, Reply] = {
    "garbage": answer(200, bytes(range(256))),
    "a page": answer(200, b"<html>", {"Content-Type": "text/html"}),
    "nothing": answer(200),
    "no content": answer(204),
    "no token": answer(200, b"{}"),
    "an empty token": verified(""),
    "a number": verified(7),
    "an object": verified({"jwt": "a.b.c"}),
    "a list": verified(["a.b.c"]),
    "white space": verified("a b"),
    "a header of its own": verified("a.b.c\r\nX-Injected: 1"),
    "a zero byte": verified("a.b\x00.c"),
    "not ASCII": verified("тoken"),
    "longer than a header": verified("a" * 20_000),
    "deep brackets": answer(200, b"[" * 200_000),
    "half": noted("half", ok(b'{"token":"a.b.c"}', length=400)),
    "lengths that contradict": noted("contradicted", ok(b'{"token":"a.b.c"}', Content_Length="3")),
    "a bomb": hostile.gzip_bomb(),
    "no end": hostile.endless_body(),
    "no end of headers": hostile.endless_headers(),
}


@pytest.mark.parametrize("reply", NO_TOKEN.values(), ids=NO_TOKEN)
def test_a_verify_without_a_usable_token_sends_nothing_and_costs_no_attempt(
    victim: Victim, beacon_host: RawServer, reply: Reply
) -> None:
    ids = victim.box.put(*intervals(2))
    beacon_host.on(VERIFY, reply)
    assert victim.until_paused().startswith("verify: ")
    assert beacon_host.posts(USAGE) == []
    assert len(beacon_host.posts(VERIFY)) >= ATTEMPTS_TO_PAUSE
    assert [victim.find(id).num_failed_send_attempts for id in ids] == [0, 0]
    well(beacon_host)
    victim.until(lambda: victim.lane().sent == 2)


def signed(claims: dict[str, Any], **headers: Any) -> str:
    return jwt.encode(claims, "a key that is long enough for HMAC SHA-256", headers=headers)


ABSURD_TOKENS = {
    "not a JWT": "x",
    "dots alone": "..",
    "a full header line of dots": "." * 16_000,
    "quotes and brackets": "\"'<>{}\\%00",
    "expired in 1970": signed({"iat": 0, "exp": 0}),
    "expires before it was issued": signed({"iat": 2_000_000_000, "exp": -2_000_000_000}),
    "expires beyond all time": signed({"iat": 0, "exp": 10**400}),
    "expires at infinity": signed({"exp": float("inf")}),
    "expires at no number": signed({"iat": float("nan"), "exp": float("nan")}),
    "expires at true": signed({"iat": False, "exp": True}),
    "expires in a word": signed({"exp": "tomorrow"}),
    "valid in a thousand years": signed({"nbf": 33_000_000_000, "exp": 33_000_000_060}),
    "for a millisecond": signed({"iat": 1_000.0, "exp": 1_000.001}),
    "unsigned": jwt.encode({"exp": 9_999_999_999}, "", algorithm="none"),
    "deep claims": f"{signed({}).partition('.')[0]}.{'W1tb' * 3000}.x",
}


@pytest.mark.parametrize("token", ABSURD_TOKENS.values(), ids=ABSURD_TOKENS)
def test_an_absurd_token_is_carried_as_it_is(victim: Victim, beacon_host: RawServer, token: str) -> None:
    """Without a configured key a token is opaque. Whatever it claims, it is sent, and asked for no more than needed."""
    victim.box.put(*intervals(2))
    beacon_host.on(VERIFY, verified(token))
    victim.until(lambda: victim.lane().sent == 2)
    (request,) = beacon_host.posts(USAGE)
    assert request.headers["authorization"] == f"Bearer {token}"
    assert len(beacon_host.posts(VERIFY)) == 1


def test_a_beacon_that_refuses_every_token_is_asked_twice_and_then_left_alone(
    victim: Victim, beacon_host: RawServer
) -> None:
    ids = victim.box.put(*intervals(2))
    beacon_host.on(USAGE, answer(401))
    dispatched = victim.dispatcher.run_once()
    assert (dispatched.sent, dispatched.failed) == (0, 0)
    assert (len(beacon_host.posts(USAGE)), len(beacon_host.posts(VERIFY))) == (2, 2)
    assert "OUTBOX_LICENSE_KEY" in victim.until_paused()
    assert victim.find(ids[0]).num_failed_send_attempts == 0
