"""Where settings come from. The first layer that has a setting wins:

    1. arguments of ``Settings(...)`` and options of the command line
    2. environment  OUTBOX_*
    3. environment  the familiar names of the product (LANGSMITH_LICENSE_KEY, BEACON_*)
    4. outbox.toml, then [tool.outbox] of pyproject.toml     } of the current directory,
    5. langsmith_config.yaml                                 } or the one file given as ``--config``
    6. defaults

The licence is one thing under two names: a layer that has ``license_key`` or ``license_file`` hides both of the
layers below, so that OUTBOX_LICENSE_FILE wins over LANGSMITH_LICENSE_KEY.

An empty environment variable counts as unset, as compose files and charts produce them. Values are returned raw, with
the place where they were found; ``outbox.settings`` parses and checks them. No error here repeats a value or a line of
a file: either may be the licence.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from outbox.core.lane import SIGNALS
from outbox.errors import ConfigError

PREFIX = "OUTBOX_"
_SWITCH_KEYS = (("config",), ("telemetry",), SIGNALS)
"""The keys that lead to a switch in langsmith_config.yaml, level by level."""
FAMILIAR = {
    "LANGSMITH_LICENSE_KEY": "license_key",
    "BEACON_ENDPOINT": "beacon_url",
    "BEACON_METRICS_ENABLED": "telemetry_metrics",
    "BEACON_TRACING_ENABLED": "telemetry_traces",
    "BEACON_LOGGING_ENABLED": "telemetry_logs",
}
"""Variables that deployments of the product set for their own beacon client, and the settings they stand for."""

_LICENCE = frozenset({"license_key", "license_file"})
_TEST_PREFIX = "OUTBOX_TEST_"
_SERVICE_LINK = re.compile(
    r"OUTBOX_(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=\d+|PORT(_\d+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://.*"
    r"|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=.*)"
)
"""Kubernetes sets these in each pod of a namespace with a Service whose name begins with ``outbox``: neither settings
nor misspelt ones."""


@dataclass(frozen=True, slots=True)
class Found:
    """A raw value, its source as ``outbox config show`` names it, and the exact place for error messages."""

    value: object = field(repr=False)
    source: str
    place: str


@dataclass(frozen=True, slots=True)
class Layer:
    """The settings of one source by name, and an error sentence for each unknown name."""

    found: dict[str, Found] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def env_name(name: str) -> str:
    return PREFIX + name.upper()


def read_layers(
    known: Sequence[str], arguments: Mapping[str, object], environ: Mapping[str, str], config: Path | None
) -> list[Layer]:
    """Every layer but the defaults, strongest first. Raises ConfigError for a file that cannot be read or parsed."""
    files = _default_files(known) if config is None else [_named_file(config, known)]
    return [_arguments(arguments, known), _environment(environ, known), _familiar_environment(environ), *files]


def merge(layers: Iterable[Layer]) -> Layer:
    merged = Layer()
    for layer in layers:
        hidden = merged.found.keys() | (set() if _LICENCE.isdisjoint(merged.found) else _LICENCE)
        merged.found.update({name: found for name, found in layer.found.items() if name not in hidden})
        merged.unknown.extend(layer.unknown)
    return merged


def _arguments(arguments: Mapping[str, object], known: Sequence[str]) -> Layer:
    return _table(arguments, known, source="argument", prefix="argument ")


def _environment(environ: Mapping[str, str], known: Sequence[str]) -> Layer:
    names = {env_name(name): name for name in known}
    layer = Layer()
    for variable, value in sorted(environ.items()):
        if not variable.startswith(PREFIX) or _is_foreign(variable, value):
            continue
        place = f"environment {variable}"
        if variable not in names:
            nearest = env_name(_nearest(variable.removeprefix(PREFIX), known))
            layer.unknown.append(f"{place}: no such setting; the nearest is {nearest}")
        elif value:
            layer.found[names[variable]] = Found(value, place, place)
    return layer


def _is_foreign(variable: str, value: str) -> bool:
    return variable.startswith(_TEST_PREFIX) or _SERVICE_LINK.fullmatch(f"{variable}={value}") is not None


def _familiar_environment(environ: Mapping[str, str]) -> Layer:
    return Layer(
        {
            name: Found(environ[variable], f"environment {variable}", f"environment {variable}")
            for variable, name in FAMILIAR.items()
            if environ.get(variable)
        }
    )


def _table(table: Mapping[str, object], known: Sequence[str], *, source: str, prefix: str) -> Layer:
    layer = Layer()
    for key, value in table.items():
        if key in known:
            layer.found[key] = Found(value, source, prefix + key)
        else:
            layer.unknown.append(f"{prefix}{key}: no such setting; the nearest is {_nearest(key, known)}")
    return layer


def _nearest(written: str, known: Sequence[str]) -> str:
    return difflib.get_close_matches(written.lower(), known, n=1, cutoff=0)[0]


def _default_files(known: Sequence[str]) -> list[Layer]:
    layers = []
    if (path := Path("outbox.toml")).is_file():
        layers.append(_toml(path, known))
    if (path := Path("pyproject.toml")).is_file() and (layer := _pyproject(path, known)) is not None:
        layers.append(layer)
    if (path := Path("langsmith_config.yaml")).is_file():
        layers.append(_yaml(path))
    return layers


def _named_file(path: Path, known: Sequence[str]) -> Layer:
    if path.name == "pyproject.toml":
        layer = _pyproject(path, known)
        if layer is None:
            raise ConfigError(f"{path} has no [tool.outbox] table; add one, or give --config another file")
        return layer
    if path.suffix == ".toml":
        return _toml(path, known)
    if path.suffix in (".yaml", ".yml"):
        return _yaml(path)
    raise ConfigError(f"--config {path}: must be a .toml file (outbox.toml) or a .yaml file (langsmith_config.yaml)")


def _toml(path: Path, known: Sequence[str]) -> Layer:
    return _table(_parse_toml(path), known, source=str(path), prefix=f"{path}: ")


def _pyproject(path: Path, known: Sequence[str]) -> Layer | None:
    tools = _parse_toml(path).get("tool")
    table = tools.get("outbox") if isinstance(tools, dict) else None
    if table is None:
        return None
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: tool.outbox must be a table: [tool.outbox]")
    section = f"{path} [tool.outbox]"
    return _table(table, known, source=section, prefix=f"{section}: ")


def _yaml(path: Path) -> Layer:
    """The switches of ``config.telemetry``. The file belongs to another product: other keys are ignored, except one
    that looks like a misspelt switch, which would leave on what was to be off.

    ``null`` counts as unset, ``false`` does not.
    """
    config = _mapping(_mapping(_parse_yaml(path), "", path).get("config"), "config", path)
    telemetry = _mapping(config.get("telemetry"), "config.telemetry", path)
    return Layer(
        {
            f"telemetry_{signal}": Found(telemetry[signal], str(path), f"{path}: config.telemetry.{signal}")
            for signal in SIGNALS
            if telemetry.get(signal) is not None
        },
        [
            f"{path}: config.telemetry.{key}: no such switch; the nearest is {near[0]}"
            for key in telemetry
            if key not in SIGNALS and (near := difflib.get_close_matches(str(key).lower(), SIGNALS, n=1, cutoff=0.75))
        ],
    )


def _mapping(value: object, key: str, path: Path) -> Mapping[object, object]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {key or 'the document'} must be a mapping of names to values")
    return value


def _parse_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(_read(path))
    except tomllib.TOMLDecodeError as error:
        position = re.search(r"\(at (.+)\)", str(error))
        where = f" at {position.group(1)}" if position else ""
    raise ConfigError(f"{path} is not valid TOML{where}; mend it, or give --config another file")


def _parse_yaml(path: Path) -> object:
    try:
        loader = yaml.SafeLoader(_read(path))
        document = loader.get_single_node()
        _require_once(document)
        return None if document is None else loader.construct_document(document)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        twice = ": the same key twice" if isinstance(error, _KeyTwice) else ""
    # PyYAML's own message quotes the line, and a deployment keeps its licence in this file.
    raise ConfigError(f"{path} is not valid YAML{where}{twice}; mend it, or give --config another file")


class _KeyTwice(yaml.MarkedYAMLError):
    pass


def _require_once(node: yaml.Node | None) -> None:
    """Refuse a key on the way to a switch that is there twice: PyYAML takes the last, and a switch would be lost. What
    else the file holds is another product's."""
    for names in _SWITCH_KEYS:
        if not isinstance(node, yaml.MappingNode):
            return
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if key.value in names:
                if key.value in found:
                    raise _KeyTwice(problem_mark=key.start_mark)
                found[key.value] = value
        node = found.get(names[0])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = error.strerror or type(error).__name__
    except UnicodeDecodeError:
        reason = "not UTF-8 text"
    raise ConfigError(f"cannot read the configuration file {path}: {reason}; check the path and its permissions")
