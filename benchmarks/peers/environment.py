"""The environment of the peers: their own versions of everything, none of ours. Made once, kept in .venv-peers."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".venv-peers"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
INSTALL_SECONDS = 300
_PIN = re.compile(r"^([a-z0-9-]+)==([^\s;\\]+)", re.MULTILINE)


def interpreter() -> Path:
    """Its Python. Raises RuntimeError when it cannot be made: a peer that is missing is no result."""
    stamp = FOLDER / ".made-of"
    made_of = f"{hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()} {sys.version}\n"
    if not stamp.exists() or stamp.read_text() != made_of:
        print("  making the environment of the peers", flush=True)
        for command in _commands():
            _do(command)
        stamp.write_text(made_of)
    return _python()


def pinned() -> dict[str, str]:
    """Version by name, of all that is installed there."""
    return dict(_PIN.findall(REQUIREMENTS.read_text()))


def _python() -> Path:
    return FOLDER / "bin" / "python"


def _commands() -> list[list[str]]:
    """By the uv of our environment, or by pip."""
    uv = Path(sys.executable).with_name("uv")
    if uv.exists():
        return [
            [str(uv), "venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER)],
            [str(uv), "pip", "sync", "--quiet", "--python", str(_python()), "--require-hashes", str(REQUIREMENTS)],
        ]
    pip = [str(_python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    return [[sys.executable, "-m", "venv", "--clear", str(FOLDER)], [*pip, "--requirement", str(REQUIREMENTS)]]


def _do(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
    if done.returncode != 0:
        raise RuntimeError(
            f"the environment of the peers cannot be made in {FOLDER}: `{' '.join(command)}` ended with "
            f"{done.returncode}:\n{done.stderr[-2000:]}\nIt is installed from a package index: is one reached?"
        )
