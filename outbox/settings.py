"""Every setting, its default and its meaning; read once, then frozen.

``Settings()`` and ``Settings.load()`` read every source, strongest first: arguments, environment, ``outbox.toml`` or
``[tool.outbox]``, ``langsmith_config.yaml``, defaults (``outbox.settings_sources`` draws the order). Relative paths are
relative to the current directory, wherever they were written.

All problems of all sources are reported at once, in one ``ConfigError`` that names each place. The licence and the
password of the database appear in no error, ``repr``, dump or ``sources()``.

Units: every ``float`` is seconds; every ``int`` named ``*_bytes`` is bytes. Both may be written with a unit
(``24h``, ``256MiB``; ``outbox.settings_values``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError, field_serializer, field_validator
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ValidationInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from outbox.core.lane import LANES, Lane
from outbox.core.privacy import MAX_VALUE_LENGTH
from outbox.core.text import mask_password
from outbox.errors import ConfigError
from outbox.settings_secrets import clean_licence, path_for_display, public_key, read_secret_file
from outbox.settings_sources import Found, env_name, merge, read_layers
from outbox.settings_values import (
    beacon_address,
    database_address,
    header_name,
    human_bytes,
    human_seconds,
    not_a_switch,
    parse_attributes,
    parse_bytes,
    parse_seconds,
)

USAGE_RETENTION_SECONDS = 30 * 86_400.0
TELEMETRY_ATTEMPTS = 20

_CENTURY = 36_525 * 86_400
"""The upper bound of every duration: a time that far ahead is still a valid date in every database."""
_BIGINT = 2**63 - 1

Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(allow_inf_nan=False, le=_CENTURY)]
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(le=_BIGINT)]
Count = Annotated[int, BeforeValidator(not_a_switch), Field(le=_BIGINT)]
Attributes = Annotated[tuple[str, ...], BeforeValidator(parse_attributes)]
Encoding = Literal["none", "gzip", "zstd"]


@dataclass(frozen=True, slots=True)
class SettingOrigin:
    """One line of ``outbox config show``. ``value_for_display`` is masked where the value is a secret."""

    name: str
    env: str
    value_for_display: str
    source: str


def _setting(default: object, meaning: str, *, unset: str = "-", **bounds: Any) -> Any:
    """A field. ``unset``: the text shown where the default is None."""
    return Field(default, description=meaning, json_schema_extra={"unset": unset}, **bounds)


def _by_class(usage: str, telemetry: str) -> str:
    return f"{usage} usage / {telemetry} telemetry"


class Settings(BaseSettings):
    """The settings of one process. Raises ConfigError; see the module's docstring for sources and units.

    ``model_fields_set`` holds the settings that some source gave: a switch that is false there was turned off on
    purpose; one that is absent has its default.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    database_url: str = _setting(
        "sqlite:///outbox.db", "where the outbox lives: a SQLAlchemy URL; its password is never shown"
    )
    # Before beacon_url, whose validation looks at it: pydantic validates in this order.
    allow_http: bool = _setting(False, "true: plain http:// to any host, not only to loopback")
    beacon_url: str = _setting(
        "https://beacon.langchain.com/v1/beacon",
        "base of the four paths; http:// only to loopback unless OUTBOX_ALLOW_HTTP=true",
    )
    license_key: SecretStr | None = _setting(None, "the licence; wins over OUTBOX_LICENSE_FILE of the same source")
    license_file: Path | None = _setting(None, "a file that holds the licence, read when it is needed")
    offline: bool = _setting(False, "true: no egress, no HTTP client is built; usage waits, telemetry is not stored")
    telemetry_metrics: bool = _setting(True, "false: the metrics lane is off (nothing stored or sent)")
    telemetry_traces: bool = _setting(True, "false: the traces lane is off (nothing stored or sent)")
    telemetry_logs: bool = _setting(True, "false: the logs lane is off (nothing stored or sent)")
    telemetry_privacy: Literal["standard", "off"] = _setting(
        "standard",
        "off: telemetry is stored and sent as it is given, whatever it holds, against what beacon's document promises",
    )
    telemetry_allow_attributes: Attributes = _setting(
        (),
        "more attribute keys that may leave, with commas: http.target, app.*, or in one place span:http.target;"
        " their values are looked at all the same",
    )
    telemetry_allow_log_bodies: bool = _setting(
        False, "true: the bodies of logs may leave, with placeholders for what looks like addresses, ids and secrets"
    )
    telemetry_max_value_length: Count = _setting(
        MAX_VALUE_LENGTH, "longer values and names in telemetry are cut, in characters (16 to 65536)", ge=16, le=65_536
    )
    batch_max_rows: Count = _setting(1000, "a batch is cut at this many entries (1 to 100000)", ge=1, le=100_000)
    batch_max_bytes: Bytes | None = _setting(
        None,
        "a batch is cut at this size",
        unset=_by_class(*(human_bytes(LANES[lane].max_batch_bytes) for lane in (Lane.USAGE, Lane.TRACES))),
        ge=1,
    )
    poll_seconds: Seconds = _setting(1.0, "how often a worker looks for entries that no wake-up announced", gt=0)
    notify: bool = _setting(
        True,
        "PostgreSQL: tell workers in other processes of commits at once, by a connection of each producing process",
    )
    lease_seconds: Seconds = _setting(
        60.0, "how long a batch belongs to the worker that claimed it; at least twice OUTBOX_REQUEST_TIMEOUT", gt=0
    )
    request_timeout: Seconds = _setting(
        15.0, "total deadline of one request, connecting and answer included", gt=0, le=3600
    )
    max_senders: Count = _setting(
        4,
        "upper bound of requests on the wire per lane and worker; the adaptive limit moves below it",
        ge=1,
        le=256,
    )
    backoff_base: Seconds = _setting(1.0, "first step of the backoff, which has full jitter", gt=0)
    backoff_max: Seconds = _setting(300.0, "longest step of the backoff; at least OUTBOX_BACKOFF_BASE", gt=0)
    telemetry_max_entries: Count = _setting(
        100_000, "a telemetry lane sheds its oldest entries beyond this many, counted", ge=1
    )
    telemetry_max_bytes: Bytes = _setting(
        256 * 1024**2, "a telemetry lane sheds its oldest entries beyond this size, counted", ge=1
    )
    telemetry_max_age: Seconds = _setting(86_400.0, "a telemetry lane sheds entries older than this, counted", gt=0)
    usage_max_entries: Count | None = _setting(
        None, "when set, enqueue raises OutboxFull beyond it; usage is never shed", unset="none", ge=1
    )
    retention_sent: Seconds | None = _setting(
        None,
        "how long a sent entry is kept; entries that wait are never purged",
        unset=_by_class(human_seconds(USAGE_RETENTION_SECONDS), "0"),
        ge=0,
    )
    retention_receipts: Seconds = _setting(90 * 86_400.0, "how long a batch and its receipt (0.5 KB) are kept", ge=0)
    retention_max_bytes: Bytes = _setting(
        1024**3, "sent entries beyond this size are purged sooner, usage never under an hour", ge=0
    )
    max_attempts: Count | None = _setting(
        None,
        "attempts at an unavailable beacon before an entry is dead; what is refused goes to dead by bisection"
        " whatever this says",
        unset=_by_class("none", str(TELEMETRY_ATTEMPTS)),
        ge=1,
    )
    sqlite_synchronous: Literal["FULL", "NORMAL"] = _setting(
        "FULL", "NORMAL may lose the last commits on power loss, never corrupts"
    )
    token_header: str = _setting(
        "Authorization", "the request header that carries the token (Authorization: as Bearer)"
    )
    telemetry_compression: Encoding = _setting(
        "none",
        "telemetry bodies of 1 KiB and more: none, gzip, or zstd where beacon takes it (needs beacon-outbox[zstd])",
    )
    usage_compression: Encoding = _setting(
        "none",
        "usage bodies of 1 KiB and more: none, gzip, or zstd where beacon takes it (needs beacon-outbox[zstd])",
    )
    token_public_key_file: Path | None = _setting(
        None, "PEM of beacon's public key; when set, tokens are verified against it", unset="not verified"
    )
    ca_file: Path | None = _setting(
        None, "PEM of the certificate authorities to trust instead of the public ones", unset="public"
    )
    client_cert_file: Path | None = _setting(None, "PEM of the client certificate for mutual TLS")
    client_key_file: Path | None = _setting(
        None, "PEM of the client certificate's key, when it is not in OUTBOX_CLIENT_CERT_FILE"
    )

    _source_of: dict[str, str] = PrivateAttr(default_factory=dict)

    def __init__(self, config: Path | None = None, **arguments: Any) -> None:
        given = merge(read_layers(tuple(type(self).model_fields), arguments, os.environ, config))
        problems = list(given.unknown)
        try:
            # No variable holds the values: an error reporter may send each frame's variables, and one is the licence.
            super().__init__(**{name: found.value for name, found in given.found.items()})  # type: ignore[arg-type]
        except ValidationError as error:
            problems += [_problem(detail, given.found) for detail in error.errors(include_url=False)]
        # Raised outside the handler: pydantic's error, which holds the values, must not become its context.
        if problems:
            raise ConfigError(_listed(problems))
        self._source_of = {name: found.source for name, found in given.found.items()}

    @classmethod
    def load(cls, config: Path | None = None, **arguments: Any) -> Self:
        """Settings from every source; ``config`` is read instead of the files of the current directory."""
        return cls(config, **arguments)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only the values that ``__init__`` merged: pydantic's own sources do not record where a value came from."""
        return (init_settings,)

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, url: str) -> str:
        return database_address(url)

    @field_validator("beacon_url")
    @classmethod
    def _check_beacon_url(cls, url: str, info: ValidationInfo) -> str:
        # A malformed allow_http is absent here, and reported already.
        return beacon_address(url, allow_http=info.data.get("allow_http", True))

    @field_validator("token_header")
    @classmethod
    def _check_token_header(cls, name: str) -> str:
        return header_name(name)

    @field_validator("request_timeout")
    @classmethod
    def _check_lease(cls, timeout: float, info: ValidationInfo) -> float:
        lease = info.data.get("lease_seconds")
        if lease is not None and lease < 2 * timeout:
            raise ValueError(
                f"the lease must be at least twice the request timeout, and OUTBOX_LEASE_SECONDS is {lease:g};"
                f" raise OUTBOX_LEASE_SECONDS to {2 * timeout:g} or more, or lower OUTBOX_REQUEST_TIMEOUT"
                f" to {lease / 2:g} or less"
            )
        return timeout

    @field_validator("backoff_max")
    @classmethod
    def _check_backoff(cls, longest: float, info: ValidationInfo) -> float:
        base = info.data.get("backoff_base")
        if base is not None and longest < base:
            raise ValueError(f"must be at least OUTBOX_BACKOFF_BASE, which is {base:g}")
        return longest

    @field_validator("client_key_file")
    @classmethod
    def _check_client_key(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if key is not None and info.data.get("client_cert_file", key) is None:
            raise ValueError("a key is of use only with its certificate; set OUTBOX_CLIENT_CERT_FILE too")
        return key

    @field_serializer("database_url")
    def _mask_database_url(self, url: str) -> str:
        return mask_password(url)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, mask_password(value) if name == "database_url" else value

    def lane_enabled(self, lane: Lane) -> bool:
        """Whether the lane stores and sends. The usage lane always does: billing depends on it.

        Offline, the telemetry lanes are off: their entries could only wait to be shed.
        """
        return LANES[lane].billing or (bool(getattr(self, f"telemetry_{lane}")) and not self.offline)

    def retention_seconds(self, lane: Lane) -> float:
        """How long a sent entry of the lane is kept."""
        if self.retention_sent is not None:
            return self.retention_sent
        return USAGE_RETENTION_SECONDS if LANES[lane].billing else 0.0

    def attempts_limit(self, lane: Lane) -> int | None:
        """Attempts at an unavailable beacon before an entry is dead; None: no limit."""
        if self.max_attempts is not None:
            return self.max_attempts
        return None if LANES[lane].billing else TELEMETRY_ATTEMPTS

    def license(self) -> str | None:
        """The licence, or None when none is configured. The file is read at each call, so that it may be replaced.

        Raises ConfigError when the file cannot be read, or does not hold a licence.
        """
        if self.license_key is not None:
            return clean_licence(self.license_key.get_secret_value(), self._place_of("license_key"))
        if self.license_file is not None:
            place = f"{self._place_of('license_file')} ({path_for_display(self.license_file)})"
            return clean_licence(read_secret_file(self.license_file, place), place)
        return None

    @property
    def token_public_key(self) -> str | None:
        """Beacon's public key as PEM text, or None. Raises ConfigError when the file holds no public key."""
        if self.token_public_key_file is None:
            return None
        place = f"{self._place_of('token_public_key_file')} ({self.token_public_key_file})"
        return public_key(read_secret_file(self.token_public_key_file, place), place)

    def sources(self) -> list[SettingOrigin]:
        """Every setting in the order of the documentation, with its value for display and its source."""
        return [
            SettingOrigin(
                name,
                env_name(name),
                _for_display(name, getattr(self, name)),
                self._source_of.get(name, "default"),
            )
            for name in type(self).model_fields
        ]

    def _place_of(self, name: str) -> str:
        source = self._source_of.get(name, "default")
        return source if env_name(name) in source else f"{env_name(name)} from {source}"


def settings_table_markdown() -> str:
    """The documentation's table of settings, made from the fields."""
    rows = [
        f"| `{env_name(name)}` | {_for_display(name, field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows]) + "\n"


def _for_display(name: str, value: object) -> str:
    match value:
        case None:
            extra = Settings.model_fields[name].json_schema_extra
            return str(extra["unset"]) if isinstance(extra, dict) else "-"
        case SecretStr():
            return "(set)"
        case Path() if name == "license_file":
            return path_for_display(value)
        case tuple():
            return ", ".join(value) or "-"
        case bool():
            return str(value).lower()
        case float():
            return human_seconds(value)
        case int() if name.endswith("_bytes"):
            return human_bytes(value)
    return mask_password(str(value)) if name == "database_url" else str(value)


_PLAIN = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
}
"""Clearer messages for some of pydantic's error types."""


def _problem(detail: ErrorDetails, found: dict[str, Found]) -> str:
    name = str(detail["loc"][0])
    # The value as written, not detail["input"]: bounds are checked after "61min" has become 3660.
    written = found.get(name) or Found(detail["input"], "default", f"{env_name(name)} (default)")
    reason = _PLAIN.get(detail["type"]) or detail["msg"].removeprefix("Value error, ").replace(
        "Input should be", "must be"
    )
    return f"{written.place}{_offending(name, written.value)}: {reason}"


def _offending(name: str, value: object) -> str:
    """The value for an error message; empty where it may be a secret, or a secret put in the wrong setting."""
    if name in {"license_key", "database_url", "token_header"} or not isinstance(value, str | int | float | Path):
        return ""
    if name == "beacon_url" and any(mark in str(value) for mark in "@?#"):
        return ""
    text = str(value) if isinstance(value, Path) else value
    shown = repr(text) if isinstance(text, str) else str(text).lower()
    return f" = {shown if len(shown) <= 80 else shown[:80] + '...'}"


def _listed(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return "\n  - ".join([f"{len(problems)} settings are wrong:", *problems])
