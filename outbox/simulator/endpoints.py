"""The five endpoints: check a request, accept it, record it, answer it. The order of the checks and the faults:

reset ▸ rate_limit ▸ statuses, status ▸ method, content type, size, encoding ▸ token ▸ shape ▸ licence ▸ refused ids
      ▸ ACCEPTED (recorded) ▸ inserted_count, body ▸ latency ▸ lose_answers
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import msgspec

from outbox.core.lane import LANES, Lane
from outbox.simulator.encodings import decoded
from outbox.simulator.exchange import BASE_PATH, VERIFY, Delivery, Reply, Request, refusal
from outbox.simulator.faults import Faults
from outbox.simulator.journal import Journal
from outbox.simulator.received import Received, RecordedRequest
from outbox.simulator.shapes import BodyError, read_telemetry, read_usage, read_verify
from outbox.simulator.tokens import Mint, TokenState

ELSEWHERE = "/_simulator/elsewhere"
"""The Location of every 3xx; a request to it is counted as ``followed``."""

_MASKED = (b"authorization", b"x-langchain-license-key")
_REJECTED = {Lane.METRICS: "rejectedDataPoints", Lane.TRACES: "rejectedSpans", Lane.LOGS: "rejectedLogRecords"}
_HUGE_BYTES = 8 * 1024 * 1024
_SPOILED = {
    "html": (b"<!doctype html><title>Sign in to the guest network</title>", "text/html; charset=utf-8"),
    "garbage": (b'\x00\xff{"inserted_', "application/json"),
    "empty": (b"", "application/json"),
}
_SPOILED_DELIVERY = {"half": Delivery.HALF, "drip": Delivery.DRIP}


@dataclass(frozen=True)
class Licenses:
    """The licences that are accepted; with ``any`` every licence."""

    accepted: Collection[str] = field(repr=False)
    any: bool = False

    def accepts(self, license: str) -> bool:
        return self.any or license in self.accepted


class Endpoints:
    """The application that the protocol serves, except for ``/_simulator``."""

    def __init__(
        self,
        faults: Faults,
        received: Received,
        mint: Mint,
        licenses: Licenses,
        *,
        strict: bool,
        journal: Journal | None,
    ) -> None:
        self._faults = faults
        self._received = received
        self._mint = mint
        self._licenses = licenses
        self._strict = strict
        self._journal = journal
        self._routes: dict[str, tuple[str, Callable[[Request], Reply]]] = {
            f"{BASE_PATH}/verify": (VERIFY, self._verify),
            f"{BASE_PATH}{LANES[Lane.USAGE].path}": (Lane.USAGE, self._usage),
        }
        for lane, spec in LANES.items():
            if not spec.billing:
                self._routes[f"{BASE_PATH}{spec.path}"] = lane, functools.partial(self._telemetry, lane)

    def __call__(self, request: Request) -> Reply:
        try:
            lane, take = self._routes[request.path]
        except KeyError:
            return refusal(404, "no such endpoint", path=request.path)
        reply = self._answer(lane, request, take)
        unanswered = reply.delivery in (Delivery.LOST, Delivery.RESET)
        self._received.answered(
            lane,
            RecordedRequest(
                path=request.path,
                headers=_masked(request.headers),
                body=request.body,
                status=0 if unanswered else reply.status,
                time=time.time(),
            ),
            malformed=reply.malformed,
        )
        return reply

    def garbage(self, reason: str) -> None:
        self._received.garbage()

    # -- faults around a request

    def _answer(self, lane: str, request: Request, take: Callable[[Request], Reply]) -> Reply:
        faults = self._faults
        strikes = faults.strikes(lane)
        if strikes and faults.fires("reset"):
            return Reply(0, delivery=Delivery.RESET)
        reply = self._struck(lane, request, take) or self._checked(lane, request, take)
        if reply.status < 300 and strikes:
            self._spoil(reply)
        if reply.status in (429, 503) and faults.retry_after is not None:
            faults.fired["retry_after"] += 1
            reply.headers["retry-after"] = str(faults.retry_after)
        reply.delay_seconds = faults.delay_seconds(lane)
        if reply.delay_seconds:
            reply.done = self._received.held(lane)
        return reply

    def _struck(self, lane: str, request: Request, take: Callable[[Request], Reply]) -> Reply | None:
        """The answer of a fault in place of the endpoint's; None if no such fault strikes."""
        wait = self._faults.limited(lane, time.monotonic())
        if wait is not None:
            reply = refusal(429, "too many requests")
            reply.headers["retry-after"] = str(math.ceil(wait))
            return reply
        status = self._faults.next_status(lane)
        if status is None:
            return None
        if status < 300:
            reply = self._checked(lane, request, take)
            reply.status = status if reply.status < 300 else reply.status
            return reply
        if self._faults.process_anyway and self._checked(lane, request, take).status < 300:
            self._faults.fired["process_anyway"] += 1
        return self._error(status)

    def _error(self, status: int) -> Reply:
        reply = refusal(status, f"the simulator was told to answer {status}")
        if self._faults.error_text is not None:
            self._faults.fired["error_text"] += 1
            reply.body = self._faults.error_text.encode()
        if status < 400:
            reply.headers["location"] = ELSEWHERE
        return reply

    def _spoil(self, reply: Reply) -> None:
        faults = self._faults
        if faults.strikes_answer("body"):
            assert faults.body is not None
            if faults.body in _SPOILED:
                reply.body, reply.content_type = _SPOILED[faults.body]
            elif faults.body == "huge":
                reply.body = msgspec.json.encode({"padding": "x" * _HUGE_BYTES})
            reply.delivery = _SPOILED_DELIVERY.get(faults.body, Delivery.WHOLE)
            reply.drip_seconds = faults.drip_ms / 1000
        if faults.fires("lose_answers"):
            reply.delivery = Delivery.LOST

    # -- what the endpoints check

    def _checked(self, lane: str, request: Request, take: Callable[[Request], Reply]) -> Reply:
        if request.method != "POST":
            reply = refusal(405, f"{request.method} is not spoken here")
            reply.headers["allow"] = "POST"
            return reply
        if request.header(b"content-type").partition(";")[0].strip().lower() != "application/json":
            return refusal(415, "the content type must be application/json")
        if self._too_long(lane, request):
            return refusal(413, "the body is too large")
        if self._refuses_encoding(lane, request):
            return refusal(415, "no content encoding is taken here")
        try:
            return self._unauthorized(lane, request) or take(request)
        except BodyError as error:
            reply = refusal(400, error.reason, path=error.path)
            reply.malformed = True
            return reply
        except LookupError as error:
            return refusal(415, f"unknown content encoding {error}")

    def _too_long(self, lane: str, request: Request) -> bool:
        bound = self._faults.max_body_bytes
        if bound is None or len(request.body) <= bound or not self._faults.strikes(lane):
            return False
        self._faults.fired["max_body_bytes"] += 1
        return True

    def _refuses_encoding(self, lane: str, request: Request) -> bool:
        encoded = b"content-encoding" in request.headers
        return encoded and self._faults.strikes(lane) and self._faults.fires("refuse_encodings")

    def _unauthorized(self, lane: str, request: Request) -> Reply | None:
        if lane == VERIFY:
            return None
        if self._faults.strikes(lane) and self._faults.fires("refuse_tokens"):
            return refusal(401, "the token is refused")
        scheme, _, token = request.header(b"authorization").partition(" ")
        if scheme.lower() != "bearer":
            token = request.header(b"x-langchain-license-key")
        if not token:
            return refusal(401, "no token")
        state = self._mint.state(token.strip(), monotonic=time.monotonic())
        if state is TokenState.VALID:
            return None
        if state is TokenState.EXPIRED:
            self._faults.fired["token_life_seconds"] += 1
        return refusal(401, f"the token is {state.value}")

    def _license_refused(self, license: str) -> bool:
        return self._faults.fires("refuse_license") or not self._licenses.accepts(license)

    # -- what the endpoints take

    def _verify(self, request: Request) -> Reply:
        if self._license_refused(read_verify(_body(request))):
            return refusal(403, "the license is refused")
        self._received.accept_verify()
        token = self._mint.give(self._faults.token_life_seconds, now=time.time(), monotonic=time.monotonic())
        return Reply(200, msgspec.json.encode({"token": token}))

    def _usage(self, request: Request) -> Reply:
        body = read_usage(_body(request), strict=self._strict)
        if self._license_refused(body.license):
            return refusal(403, "the license is refused")
        ids = [row.id for row in body.trace_transactions]
        if self._refuses_one_of(ids):
            return refusal(422, "a row is refused")
        key, now = request.header(b"idempotency-key"), time.time()
        attempts = [row.num_failed_send_attempts for row in body.trace_transactions]
        if self._journal is not None:
            self._journal.write(now, Lane.USAGE, key, ids)
        new = self._received.accept_usage(key, ids, attempts, now=now)
        return Reply(
            200,
            msgspec.json.encode({"inserted_count": self._inserted_count(sent=len(ids), inserted=new)}),
        )

    def _telemetry(self, lane: Lane, request: Request) -> Reply:
        body = _body(request)
        held = read_telemetry(lane, body)
        self._received.accept_telemetry(lane, request.header(b"idempotency-key"), body, held, now=time.time())
        partial = self._partial_success(lane)
        return Reply(200, msgspec.json.encode({"partialSuccess": partial} if partial else {}))

    def _refuses_one_of(self, ids: list[str]) -> bool:
        faults = self._faults
        if not (faults.refuse_ids or faults.refuse_every) or not faults.strikes(Lane.USAGE):
            return False
        if not faults.refuse_ids.isdisjoint(ids):
            faults.fired["refuse_ids"] += 1
            return True
        if any(faults.refuses(id) for id in ids):
            faults.fired["refuse_every"] += 1
            return True
        return False

    def _inserted_count(self, *, sent: int, inserted: int) -> int | str:
        faults = self._faults
        if not faults.strikes(Lane.USAGE) or not faults.strikes_answer("inserted_count"):
            return inserted
        match faults.inserted_count:
            case "short":
                return max(inserted - 1, 0)
            case "over":
                return sent + 1
            case "negative":
                return -1
            case "text":
                return "many"
            case number:
                assert isinstance(number, int)
                return number

    def _partial_success(self, lane: Lane) -> dict[str, str]:
        faults = self._faults
        partial: dict[str, str] = {}
        if not faults.strikes(lane):
            return partial
        if faults.reject_items:
            faults.fired["reject_items"] += 1
            partial[_REJECTED[lane]] = str(faults.reject_items)  # int64 is a string in OTLP/JSON
        if faults.warning is not None:
            faults.fired["warning"] += 1
            partial["errorMessage"] = faults.warning
        return partial


def _body(request: Request) -> bytes:
    return decoded(request.body, request.header(b"content-encoding"))


def _masked(headers: dict[bytes, bytes]) -> dict[str, str]:
    return {
        name.decode("latin-1"): "***" if name in _MASKED else value.decode("latin-1") for name, value in headers.items()
    }
