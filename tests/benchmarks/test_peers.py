"""The peers that outbox is compared with: exactly these versions, and none that is quietly missing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from benchmarks.figures import Run
from benchmarks.peers import _report, environment, ours_beside
from benchmarks.peers.columns import CONTESTS
from benchmarks.peers.ours import ROWS
from benchmarks.peers.peer_side import AsyncSender, Coalescing
from benchmarks.peers.theirs import PEERS, Peer

FOLDER = Path(environment.__file__).parent


def test_every_requirement_of_the_peers_is_one_version_with_its_hashes() -> None:
    requirements = re.split(r"\n(?=[a-z])", environment.REQUIREMENTS.read_text())[1:]
    loose = [each for each in requirements if not re.match(r"[a-z0-9-]+==\S+ .*--hash=sha256:", each, re.DOTALL)]
    assert requirements
    assert loose == []


def test_the_requirements_of_the_peers_name_no_place_to_get_them_from() -> None:
    said = environment.REQUIREMENTS.read_text()
    assert "://" not in said
    assert "--index-url" not in re.sub("--no-emit-index-url", "", said)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.label)
def test_every_peer_is_pinned_and_its_program_can_do_what_it_is_asked_for(peer: Peer) -> None:
    assert peer.name in environment.pinned()
    program = (FOLDER / f"{peer.name.replace('-', '_')}_peer.py").read_text()
    columns = peer.rows.keys() & {"enqueue", "bulk", "drain", "post"}
    asked = {peer.variant} if peer.variant else {"produce", "work"} | columns
    assert [what for what in asked if f'"{what}": {what}' not in program] == []


def test_who_takes_many_rows_at_a_time_is_measured_with_many_rows_of_a_request_too() -> None:
    assert {peer.name for peer in PEERS if peer.variant == "coalesced"} == {"txoutbox", "pgqueuer", "persist-queue"}


def test_what_is_handed_over_in_one_turn_of_the_event_loop_is_one_request() -> None:
    posted: list[Sequence[bytes]] = []

    class Sender:
        async def post(self, payloads: Sequence[bytes]) -> None:
            posted.append(payloads)

    async def hand_over() -> None:
        coalescing = Coalescing(cast(AsyncSender, Sender()))
        await asyncio.gather(*[coalescing.post(payload) for payload in (b"1", b"2", b"3")])
        await coalescing.post(b"4")

    asyncio.run(hand_over())
    assert posted == [[b"1", b"2", b"3"], [b"4"]]


def test_storage_is_compared_with_that_of_as_many_rows() -> None:
    """What a table takes of a row depends on how many there are: a slow peer is given fewer."""
    peers = [peer for peer in PEERS if "kept" in peer.rows]
    rows = {who: peer.rows["kept"] for peer in peers for who in (peer.label, ours_beside(peer, "kept"))}
    run = Run("peers", "quick")
    _report(run, "postgresql", "kept", peers, {who: [{"kept": float(count)}] for who, count in rows.items()})
    assert [(figure.base_name, figure.ratio) for figure in run.figures] == [(peer.label, 1.0) for peer in peers]
    assert {figure.title.rpartition(", ")[2] for figure in run.figures} == {"200,000 rows", "20,000 rows"}


def test_outbox_takes_part_in_every_column() -> None:
    assert CONTESTS.keys() == ROWS.keys()


def test_an_environment_that_cannot_be_made_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unknown = tmp_path / "requirements.txt"
    unknown.write_text("no-such-peer==1.0 --hash=sha256:" + "0" * 64)
    monkeypatch.setattr(environment, "FOLDER", tmp_path / "peers")
    monkeypatch.setattr(environment, "REQUIREMENTS", unknown)
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match="environment of the peers cannot be made"):
        environment.interpreter()
