"""The checks of the path to beacon and of its answer: proxy, DNS, TLS, token, clock. Only POST verify is sent."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import jwt

from outbox.core.receipt import Answer, Failure, Receipt, Verdict
from outbox.core.text import EXCERPT_CHARS, printable
from outbox.doctor.exchange import Exchange, ask
from outbox.doctor.finding import Finding, ok, parted, problem, problem_of, skipped, warning
from outbox.doctor.patient import REQUEST_SECONDS, RESOLVE_SECONDS, Check, Need, Patient
from outbox.doctor.skew import judge_skew
from outbox.errors import ConfigError
from outbox.messages.usage import FUTURE_SECONDS
from outbox.settings_values import human_seconds
from outbox.transport.config import is_loopback, parse_url
from outbox.transport.proxy import proxy_for
from outbox.transport.secret import Secret, mask
from outbox.transport.token import LEEWAY_SECONDS, MAX_LIFE_SECONDS, life_seconds, load_public_key

FEW_DAYS = 14
SHORT_LIFE_SECONDS = 60.0
_DAY = 86_400


def _proxy(patient: Patient) -> Iterator[Finding]:
    try:
        beacon = parse_url(patient.settings.beacon_url)
    except ConfigError as error:
        patient.lack(Need.EGRESS, "OUTBOX_BEACON_URL cannot be parsed")
        yield problem_of(error)
        return
    try:
        named = proxy_for(beacon)
    except ConfigError as error:
        patient.lack(Need.EGRESS, "the environment names no usable proxy")
        yield problem_of(error)
        return
    if named is None:
        yield ok("none; the environment names none for beacon")
    else:
        yield ok(f"requests go through {named.url.netloc.decode()}, as the environment says")


def _name(patient: Patient) -> Iterator[Finding]:
    beacon = parse_url(patient.settings.beacon_url)
    proxy = proxy_for(beacon)
    host = (beacon if proxy is None else proxy.url).host
    try:
        found = {str(address[0]) for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        patient.lack(Need.EGRESS, f"{host} has no address")
        whose = "OUTBOX_BEACON_URL" if proxy is None else "HTTPS_PROXY"
        yield problem(
            f"{host} cannot be resolved: {reason}", f"check {whose} and this host's resolver: getent hosts {host}"
        )
        return
    yield ok(f"{host} is {', '.join(sorted(found))}" if found != {host} else f"{host} is an address")


def _beacon(patient: Patient) -> Iterator[Finding]:
    settings = patient.settings
    license = _license(patient)
    if license is None:
        patient.lack(Need.ANSWER, "there is no licence to verify")
        yield skipped("there is no licence to verify")
        return
    try:
        exchange = ask(settings, license, min(settings.request_timeout, REQUEST_SECONDS))
    except ConfigError as error:
        patient.lack(Need.ANSWER, "no request can be made")
        yield problem_of(error)
        return
    patient.exchange = exchange
    if isinstance(exchange.answer, Failure):
        patient.lack(Need.ANSWER, "beacon did not answer")
    judged = judge_answer(exchange, settings.beacon_url)
    yield replace(judged, found=mask(judged.found, license))  # a redirect's Location may repeat the licence


def _license(patient: Patient) -> Secret | None:
    try:
        key = patient.settings.license()
    except ConfigError:  # reported by the check of the licence
        return None
    return None if key is None else Secret(key)


def judge_answer(exchange: Exchange, url: str) -> Finding:
    """Whether the answer comes from beacon, or from something in its place such as a proxy or a captive portal."""
    found = f"{url} answered in {exchange.seconds * 1000:.0f} ms"
    if isinstance(exchange.token, Secret) or exchange.token.verdict is Verdict.UNAUTHORIZED:
        return ok(found)
    receipt = exchange.token
    if isinstance(exchange.answer, Failure):
        return problem(f"{url}: {receipt.reason.removeprefix('verify: ')}: {exchange.words}", _mend_of(exchange.words))
    found, mend = parted(receipt.reason.removeprefix("verify: "), _PORTAL)
    if location := _host(exchange.answer.headers.get("location", "")):
        found = f"{found}; it leads to {location}"
    if receipt.verdict is Verdict.UNAVAILABLE and not 200 <= exchange.answer.status < 300:
        return warning(found, "none here: the worker tries again; if it lasts, ask who runs beacon")
    return problem(found, mend)


def _host(location: str) -> str:
    try:
        return printable(urlsplit(location).netloc.rpartition("@")[2], EXCERPT_CHARS)
    except ValueError:
        return ""


_PORTAL = "check OUTBOX_BEACON_URL; a proxy or a captive portal may answer in its place: NO_PROXY, HTTPS_PROXY"


def _mend_of(words: str) -> str:
    """The remedy for a request without an answer. ``words``: the text of the exception."""
    if "certificate has expired" in words or "not yet valid" in words:
        return "renew the certificate of beacon or of the proxy on the way; check the clock: timedatectl"
    if "Hostname mismatch" in words or "IP address mismatch" in words:
        return "name the host in OUTBOX_BEACON_URL as its certificate does"
    if "CERTIFICATE_VERIFY_FAILED" in words:
        return "OUTBOX_CA_FILE=/path/to/the/authority.pem, of the private authority or of the proxy that opens TLS"
    if "CERTIFICATE_REQUIRED" in words.upper() or "HANDSHAKE_FAILURE" in words.upper():
        return "OUTBOX_CLIENT_CERT_FILE=/path/to/the/certificate.pem, and OUTBOX_CLIENT_KEY_FILE"
    if "ALERT_UNKNOWN_CA" in words or re.search("ALERT_[A-Z_]*CERTIFICATE", words):  # said by the server, of ours
        return "renew the client certificate: OUTBOX_CLIENT_CERT_FILE, OUTBOX_CLIENT_KEY_FILE; beacon refuses this one"
    if words.startswith("ProxyError"):
        return "have the proxy let this host reach beacon; HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT where it asks who"
    if "WRONG_VERSION_NUMBER" in words.upper() or "RECORD_LAYER_FAILURE" in words.upper():
        return "what answers there does not speak TLS: check the port of OUTBOX_BEACON_URL, or of HTTPS_PROXY"
    return "let this host reach beacon (firewall, HTTPS_PROXY), or set OUTBOX_OFFLINE=true where it must not"


def _tls(patient: Patient) -> Iterator[Finding]:
    url = patient.settings.beacon_url
    if url.startswith("https:"):
        yield judge_certificate(str((patient.exchange.certificate or {}).get("notAfter", "")), time.time())
    elif is_loopback(urlsplit(url).hostname or ""):
        yield ok("plain http, which does not leave this machine")
    else:
        yield warning(
            "plain http: the licence crosses the network in clear",
            f"OUTBOX_BEACON_URL={url.replace('http', 'https', 1)}",
        )


def judge_certificate(not_after: str, now: float) -> Finding:
    """``not_after``: the expiry as ``SSLSocket.getpeercert`` formats it; empty if unknown. ``now``: epoch seconds."""
    if not not_after:
        return skipped("the certificate does not say when it ends")
    days = int((ssl.cert_time_to_seconds(not_after) - now) // _DAY)
    found = f"the certificate is trusted, and ends in {days} days ({not_after})"
    return (
        warning(found, "have it renewed by who runs beacon, or the proxy on the way") if days < FEW_DAYS else ok(found)
    )


def _token(patient: Patient) -> Iterator[Finding]:
    token = patient.exchange.token
    if isinstance(token, Receipt):
        if token.verdict is Verdict.UNAUTHORIZED:
            yield problem(*parted(token.reason.removeprefix("verify: "), "OUTBOX_LICENSE_FILE=/path/to/the/licence"))
        else:
            yield skipped("beacon gave none")
        return
    try:
        pem = patient.settings.token_public_key
        key = None if pem is None else load_public_key(pem)
    except ConfigError as error:
        yield problem_of(error)
        return
    try:
        life = life_seconds(token, key, now=time.time())
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        yield problem(
            f"the token is not accepted by OUTBOX_TOKEN_PUBLIC_KEY_FILE ({type(error).__name__})",
            "put beacon's present key there, and check this host's clock: timedatectl",
        )
        return
    yield judge_life(_claimed_life(token), life, verified=key is not None)


def judge_life(claimed: float | None, life: float, *, verified: bool) -> Finding:
    """``claimed``: the token's exp - iat in seconds, None if unknown; ``life``: seconds that a worker uses it."""
    used = f"it is used for {human_seconds(round(life))}"
    by_key = "and verified by the public key" if verified else "and not verified: no OUTBOX_TOKEN_PUBLIC_KEY_FILE"
    odd = "tell who runs beacon; it is asked for a new one in good time"
    if claimed is None:
        return ok(f"it does not say how long it lives; {used}, {by_key}")
    if claimed <= 0 or claimed > MAX_LIFE_SECONDS:
        return warning(f"its life is absurd, {claimed:.0f} s; {used}, {by_key}", odd)
    if claimed < SHORT_LIFE_SECONDS:
        return warning(f"its life is short, {claimed:g} s: every few requests ask for a new one", odd)
    return ok(f"{used}, {by_key}")


def _claimed_life(token: Secret) -> float | None:
    try:
        claims = jwt.decode(token.reveal(), options={"verify_signature": False})
        return float(claims["exp"]) - float(claims.get("iat", time.time()))
    except (jwt.PyJWTError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def _clock(patient: Patient) -> Iterator[Finding]:
    exchange = patient.exchange
    assert isinstance(exchange.answer, Answer)
    try:
        date = parsedate_to_datetime(exchange.answer.headers["date"])
    except (KeyError, ValueError, TypeError, IndexError, OverflowError):
        yield skipped("beacon's answer has no Date")
        return
    there = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() + 0.5  # Date is cut to the second
    verified = patient.settings.token_public_key_file is not None
    means = "tokens are refused" if verified else "intervals are dated wrong, and refused at five minutes"
    yield judge_skew(
        "beacon",
        exchange.sent_at + exchange.seconds / 2 - there,
        exchange.seconds / 2 + 0.5,
        means=means,
        bearable=LEEWAY_SECONDS if verified else FUTURE_SECONDS,
    )


CHECKS = (
    Check("proxy", Need.EGRESS, _proxy),
    Check("name", Need.EGRESS, _name, RESOLVE_SECONDS),
    Check("beacon", Need.EGRESS, _beacon, REQUEST_SECONDS + RESOLVE_SECONDS),
    Check("tls", Need.ANSWER, _tls),
    Check("token", Need.ANSWER, _token),
    Check("beacon clock", Need.ANSWER, _clock),
)
