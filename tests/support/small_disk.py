"""A disk of a few MiB: a tmpfs, for tests that fill it. Needs root, or ``sudo`` that asks nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_SUDO = [] if os.geteuid() == 0 else ["sudo", "-n"]


class SmallDisk:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave nothing."""
        with self._filler.open("wb", buffering=0) as filler:
            try:
                while filler.write(bytes(4096)):
                    pass
            except OSError:  # ENOSPC, which is what it was for
                return

    def make_room(self) -> None:
        self._filler.unlink()


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[SmallDisk]:
    """Mounted on ``folder``, where anybody may write; skips the test where nothing can be mounted."""
    folder.mkdir()
    options = f"size={mebibytes}m,mode=1777"
    mount = [*_SUDO, "mount", "-t", "tmpfs", "-o", options, "outbox-small-disk", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no small disk: {error}")
    if done.returncode != 0:
        pytest.skip(f"no small disk: {done.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        # Lazy: the server may still hold a file of a database that was dropped.
        subprocess.run([*_SUDO, "umount", "--lazy", str(folder)], check=True)
