"""A proxy that simulates a slow line to a local server: ``python -m benchmarks.line PORT ...``, started by ``Line``.

    client ══ 20 Mbit/s, 20 ms ══▶ PORT
           ◀══ 20 Mbit/s, 20 ms ══

Each direction is one FIFO queue that all connections share: a piece leaves after those before it, and arrives 20 ms
later. The proxy does not read from a sender that is ahead of the line by more than BUFFER_SECONDS. TCP's slow start and
packet loss are not simulated: the connections of a worker live long.

    stdin   a line: report        stdout   the port, then for each line "UP DOWN": bytes of each direction so far
            EOF:    exit
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import threading
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

MEGABITS = 20.0
ROUND_TRIP_MS = 40.0
PIECE_BYTES = 8192
BUFFER_SECONDS = 0.05
"""How far a sender may be ahead of the line: stands for the buffers of a router and of both ends."""


class Carried(NamedTuple):
    """Bytes carried in each direction, including HTTP's headers."""

    up: int
    down: int


class Line:
    """The process of a line to a server. Its ``url`` is the given one with the port of the line."""

    def __init__(self, url: str, *, megabits: float = MEGABITS, round_trip_ms: float = ROUND_TRIP_MS) -> None:
        target = urlsplit(url)
        command = [sys.executable, "-m", "benchmarks.line", str(target.port), str(megabits), str(round_trip_ms)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = target._replace(netloc=f"127.0.0.1:{int(self._answer())}").geturl()

    def carried(self) -> Carried:
        """The bytes carried since the start."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Carried(*map(int, self._answer().split()))

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the line has ended")
        return line

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)


class Direction:
    """One direction of the line. ``rate``: bytes a second; ``delay``: seconds."""

    def __init__(self, rate: float, delay: float) -> None:
        self.carried = 0
        self._rate = rate
        self._delay = delay
        self._free_at = 0.0

    def arrival(self, size: int, now: float) -> float:
        """Enqueue ``size`` bytes at ``now``. Returns the time at which they arrive."""
        self._free_at = max(self._free_at, now) + size / self._rate
        self.carried += size
        return self._free_at + self._delay

    def ahead(self, now: float) -> float:
        """Seconds until everything enqueued has left the sender's end."""
        return self._free_at - now


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction) -> None:
    """Forward one direction of one connection until its sender closes it."""
    clock = asyncio.get_running_loop().time
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def arrive() -> None:
        while True:
            due, piece = await under_way.get()
            await asyncio.sleep(due - clock())
            if not piece:
                return
            writer.write(piece)
            await writer.drain()

    arriving = asyncio.create_task(arrive())
    with suppress(ConnectionError):
        piece = b"-"
        while piece:
            piece = await reader.read(PIECE_BYTES)
            under_way.put_nowait((direction.arrival(len(piece), clock()), piece))
            await asyncio.sleep(max(0.0, direction.ahead(clock()) - BUFFER_SECONDS))
        await arriving
    arriving.cancel()
    with suppress(OSError):
        writer.write_eof()


async def serve(port: int, up: Direction, down: Direction) -> None:
    async def connected(from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(from_client, to_server, up), carry(from_server, to_client, down))
        to_client.close()
        to_server.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=PIECE_BYTES)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("megabits", type=float, help="a second, each way")
    parser.add_argument("round_trip_ms", type=float)
    given = parser.parse_args()
    up, down = (Direction(given.megabits * 1e6 / 8, given.round_trip_ms / 2000) for _ in range(2))
    threading.Thread(target=lambda: asyncio.run(serve(given.port, up, down)), daemon=True).start()
    for _ in sys.stdin:
        print(up.carried, down.carried, flush=True)


if __name__ == "__main__":
    main()
