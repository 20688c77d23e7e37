"""A slow line before a server of this machine: ``python -m benchmarks.line PORT ...``, started by ``Line``.

    client ══ 20 Mbit/s, 20 ms ══▶ PORT
           ◀══ 20 Mbit/s, 20 ms ══

Each direction is one queue that all connections share: a piece leaves when those before it have left, and arrives 20 ms
after. A sender that is ahead of the line by more than its buffer is not read from. What TCP does on a real line besides
(slow start, loss) is left out: the connections of a worker live long.

    stdin   a line: tell          stdout   the port, then for each line "UP DOWN": bytes of either direction so far
            end:    end
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
"""How far a sender may be ahead: the buffer of a router, and of both ends."""


class Carried(NamedTuple):
    """Bytes, HTTP's heads included."""

    up: int
    down: int


class Line:
    """The line to ``url`` as a process; ``url``: the same beyond it."""

    def __init__(self, url: str, *, megabits: float = MEGABITS, round_trip_ms: float = ROUND_TRIP_MS) -> None:
        target = urlsplit(url)
        command = [sys.executable, "-m", "benchmarks.line", str(target.port), str(megabits), str(round_trip_ms)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = target._replace(netloc=f"127.0.0.1:{int(self._answer())}").geturl()

    def carried(self) -> Carried:
        """Since the start."""
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
    """``rate``: bytes a second; ``delay``: seconds."""

    def __init__(self, rate: float, delay: float) -> None:
        self.carried = 0
        self._rate = rate
        self._delay = delay
        self._free_at = 0.0

    def arrival(self, size: int, now: float) -> float:
        """When ``size`` bytes that are handed over now arrive."""
        self._free_at = max(self._free_at, now) + size / self._rate
        self.carried += size
        return self._free_at + self._delay

    def ahead(self, now: float) -> float:
        """Seconds until all that was handed over has left."""
        return self._free_at - now


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction) -> None:
    """One direction of one connection, until its sender ends it."""
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
