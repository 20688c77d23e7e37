"""Unpacks a Debian package into a cache folder. Needs no root, installs nothing and changes nothing of the machine."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.processes import ServerStartError

_COMPLETE = ".complete"


def unpacked(package: str) -> Path:
    """The root folder of the unpacked ``package``, with the libraries that it needs and the machine lacks. Downloads
    once.

    Raises ServerStartError with what apt said.
    """
    cache = _cache_folder()
    tree = cache / package
    with _lock(cache / f"{package}.lock"):
        if not (tree / _COMPLETE).exists():
            shutil.rmtree(tree, ignore_errors=True)
            _download_and_unpack(package, cache, tree)
            (tree / _COMPLETE).touch()
    return tree


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(base).expanduser() / "outbox-tests"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / f"outbox-tests-{os.geteuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download_and_unpack(package: str, cache: Path, tree: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise ServerStartError(f"{package} cannot be downloaded: this machine has no apt-get")
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        debs = Path(scratch) / "debs"
        debs.mkdir()
        apt = _Apt(debs, Path(scratch) / "apt")
        apt.download([package])
        missing = [name for name in _libraries_of(next(debs.glob("*.deb"))) if not _is_installed(name)]
        if missing:
            apt.download(missing)
        for deb in debs.glob("*.deb"):
            _run(["dpkg", "-x", str(deb), str(tree)])
    for folder in ("doc", "man", "lintian"):
        shutil.rmtree(tree / "usr/share" / folder, ignore_errors=True)


class _Apt:
    """``apt-get download`` with the machine's package lists, or with its own where those are empty or stale."""

    def __init__(self, folder: Path, private: Path) -> None:
        self._folder = folder
        self._private = private
        self._options = ["-o", "Acquire::Retries=3"]
        if os.geteuid() == 0:
            self._options += ["-o", "APT::Sandbox::User=root"]  # _apt cannot write into our folder

    def download(self, packages: Sequence[str]) -> None:
        try:
            self._get("download", *packages)
        except ServerStartError:
            if self._private.exists():
                raise
            self._update()
            self._get("download", *packages)

    def _update(self) -> None:
        for part in ("lists/partial", "cache/archives/partial"):
            (self._private / part).mkdir(parents=True)
        self._options += ["-o", f"Dir::State::lists={self._private}/lists", "-o", f"Dir::Cache={self._private}/cache"]
        self._get("update")

    def _get(self, *words: str) -> None:
        _run(["apt-get", "-q", *self._options, *words], cwd=self._folder)


def _libraries_of(deb: Path) -> list[str]:
    """Names of the shared libraries that a package depends on, the first of each set of alternatives."""
    depends = _run(["dpkg-deb", "-f", str(deb), "Depends"])
    names = [re.split(r"[\s|:(]", part.strip(), maxsplit=1)[0] for part in depends.split(",")]
    return [name for name in names if name.startswith("lib")]


def _is_installed(name: str) -> bool:
    query = ["dpkg-query", "-W", "-f", "${Status}", name]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.endswith(" installed")


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    if done.returncode != 0:
        raise ServerStartError(f"{' '.join(command)} failed:\n{(done.stderr or done.stdout)[-2000:]}")
    return done.stdout
