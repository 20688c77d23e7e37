"""A TCP port that stays reserved while the simulator does not listen on it."""

from __future__ import annotations

import errno
import socket

from outbox.errors import ConfigError

_BACKLOG = 1024
_PORT_ERRORS = (errno.EADDRINUSE, errno.EACCES)


class ReservedPort:
    """A port that this process keeps whether or not it listens there.

    While it does not listen, a bound socket holds the port: connections are refused, and no other process gets it.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._socket: socket.socket | None = listen(host, port)
        self.port: int = self._socket.getsockname()[1]

    def listen(self) -> socket.socket:
        """A listening socket, which the caller closes."""
        listening, self._socket = self._socket, None
        if listening is None or not _is_listening(listening):
            if listening is not None:
                listening.close()
            listening = listen(self._host, self.port)
        return listening

    def hold(self) -> None:
        """Keep the port without listening."""
        self.release()
        self._socket = _bound(self._host, self.port)

    def release(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _bound(host: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        mend = "port (0: any free one)" if error.errno in _PORT_ERRORS else "host"
        failure = f"the simulator cannot listen on {host}:{port}: {error.strerror}"
        raise ConfigError(f"{failure}; choose another {mend}") from error
    return made


def listen(host: str, port: int) -> socket.socket:
    made = _bound(host, port)
    made.listen(_BACKLOG)
    return made


def _is_listening(held: socket.socket) -> bool:
    return bool(held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
