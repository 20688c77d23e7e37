"""No tracked file names a package registry: a machine brings its own, and a mirror must be enough."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

HOSTS = [
    ".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("deb", "debian", "org"), ("npmjs", "org"))
]
"""Put together here, so that this file does not name them either."""

NOT_OURS = {".venv", ".venv-lowest", ".venv-peers", ".git", "__pycache__", "dist", "build"}


def test_no_file_names_a_package_registry() -> None:
    named = [
        f"{path.relative_to(ROOT)} names {host}"
        for path in _files()
        for host in HOSTS
        if host.encode() in path.read_bytes()
    ]
    assert named == []


def _files() -> list[Path]:
    """What git tracks or would track; outside a work tree (an unpacked sdist) every file of the project."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name] if listed.returncode == 0 else _walk()
    return [path for path in paths if path.is_file()]


def _walk() -> list[Path]:
    found: list[Path] = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in NOT_OURS and not name.endswith("_cache")]
        found += [Path(folder) / name for name in names]
    return found
