"""A disk of a few MiB, a tmpfs, for tests that fill it. Needs root, or ``sudo`` without a password."""

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
        """Write until the disk is full."""
        with self._filler.open("wb", buffering=0) as filler:
            try:
                while filler.write(bytes(4096)):
                    pass
            except OSError:  # ENOSPC: the disk is full
                return

    def make_room(self) -> None:
        self._filler.unlink()


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[SmallDisk]:
    """A small disk mounted on ``folder``, writable by every user. Skips the test where it cannot be mounted."""
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
