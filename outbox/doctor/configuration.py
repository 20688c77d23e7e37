"""The checks of the settings: validity, length of the lease, licence, privacy, mode of the client key file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from outbox.doctor.files import modes
from outbox.doctor.finding import Finding, ok, parted, problem, skipped, warning
from outbox.doctor.patient import Check, Need, Patient
from outbox.errors import ConfigError
from outbox.settings import Settings
from outbox.settings_sources import Found, env_name, merge, read_layers
from outbox.settings_values import human_seconds

_DATABASE_SETTINGS = frozenset({"database_url"})
_BEACON_SETTINGS = frozenset(
    {"beacon_url", "allow_http", "offline", "license_key", "license_file", "token_header", "token_public_key_file"}
    | {"ca_file", "client_cert_file", "client_key_file"}
)
_UNKNOWN = ": no such setting; the nearest is "
_LONGEST_SEND = 4
"""The most requests of one ``BeaconTransport.send``: verify, POST and, after a 401 or 403, both again. Each of them may
take the whole request timeout."""


def _settings(patient: Patient) -> Iterator[Finding]:
    given = {} if patient.database_url is None else {"database_url": patient.database_url}
    try:
        patient.settings = Settings.load(patient.config, **given)
    except ConfigError as error:
        lines = str(error).split("\n  - ")
        lines = lines[1:] or lines
        yield from map(_wrong_setting, lines)
        _continue_without(patient, given, lines)
        return
    _forbid_egress(patient)
    changed = [each for each in patient.settings.sources() if each.source != "default"]
    yield ok(f"{len(changed)} set, all valid; they are listed by: outbox config show")


def _wrong_setting(line: str) -> Finding:
    place, unknown, nearest = line.partition(_UNKNOWN)
    if unknown:
        there = place.removeprefix("environment ")
        drop = f"unset {there}" if there != place else f"remove it from {place.partition(': ')[0]}"
        return problem(f"{place}: no such setting", f"{drop}, or rename it to {nearest}")
    place = line.partition(": ")[0].partition(" = ")[0].removeprefix("environment ")
    return problem(*parted(line, f"correct {place}, or remove it"))


def _continue_without(patient: Patient, given: Mapping[str, Any], lines: list[str]) -> None:
    """Let the other checks run with the valid settings.

    Checks of the database or of beacon do not run where an invalid setting could direct them to the wrong server.
    """
    try:
        patient.settings, wrong = valid_settings(patient.config, given)
    except ConfigError:
        patient.lack(Need.SETTINGS, "the settings cannot be read")
        return
    _forbid_egress(patient)
    meant = {line.partition(_UNKNOWN)[2].removeprefix("OUTBOX_").lower() for line in lines}
    patient.wrong = wrong | (meant & Settings.model_fields.keys())
    if patient.wrong & _DATABASE_SETTINGS:
        patient.lack(Need.DATABASE, "the settings leave open which database is meant")
    if patient.wrong & _BEACON_SETTINGS:
        patient.lack(Need.EGRESS, "the settings leave open whether and how beacon may be asked")


def _forbid_egress(patient: Patient) -> None:
    if patient.settings.offline:
        patient.lack(Need.EGRESS, "OUTBOX_OFFLINE is true: nothing leaves this host")


def valid_settings(config: Path | None, given: Mapping[str, Any]) -> tuple[Settings, frozenset[str]]:
    """The settings with defaults in place of the invalid ones, and the names of the invalid ones.

    Raises ``ConfigError`` when a file cannot be read, or when even the defaults contradict the settings that remain.
    """
    found = merge(read_layers(tuple(Settings.model_fields), given, os.environ, config)).found
    wrong: frozenset[str] = frozenset()
    while True:
        try:
            return _Given(found), wrong
        except ValidationError as error:
            named = frozenset(str(detail["loc"][0]) for detail in error.errors(include_input=False))
        wrong |= named
        if named.isdisjoint(found):  # a default contradicts a given setting: drop all that may be the cause
            named = frozenset(found) - _DATABASE_SETTINGS - _BEACON_SETTINGS
            if not named:
                raise ConfigError("no setting holds without the others")
        found = {name: each for name, each in found.items() if name not in named}


class _Given(Settings):
    """Settings from exactly the values found, without reading the environment or files again."""

    def __init__(self, found: Mapping[str, Found]) -> None:
        super(Settings, self).__init__(**{name: each.value for name, each in found.items()})  # type: ignore[arg-type]
        self._source_of = {name: each.source for name, each in found.items()}


def _lease(patient: Patient) -> Iterator[Finding]:
    if patient.wrong & {"lease_seconds", "request_timeout"}:
        yield skipped("OUTBOX_LEASE_SECONDS or OUTBOX_REQUEST_TIMEOUT is wrong")
        return
    lease, timeout = patient.settings.lease_seconds, patient.settings.request_timeout
    longest = _LONGEST_SEND * timeout
    sums = f"verify, POST, verify, POST of {human_seconds(timeout)} each take up to {human_seconds(longest)}"
    if lease >= longest:
        yield ok(f"{human_seconds(lease)}; {sums}")
    else:
        yield warning(
            f"{human_seconds(lease)}, but {sums}: a batch whose token is refused late waits for its next lease",
            f"OUTBOX_LEASE_SECONDS={longest:g}",
        )


def _licence(patient: Patient) -> Iterator[Finding]:
    settings = patient.settings
    try:
        present = settings.license() is not None
    except ConfigError as error:
        yield problem(*parted(str(error), "copy the licence again, on one line"))
        return
    if not present and settings.offline:
        yield ok("none, and none is needed offline")
    elif not present:
        yield problem("none is configured, so nothing can be sent", "OUTBOX_LICENSE_FILE=/path/to/the/licence")
    else:
        where = {each.name: each.source for each in settings.sources() if each.name.startswith("license_")}
        yield ok(f"present, from {where['license_file' if settings.license_key is None else 'license_key']}")
    if settings.license_file is not None and settings.license_key is None:
        yield from modes([settings.license_file])


def _privacy(patient: Patient) -> Iterator[Finding]:
    settings = patient.settings
    if settings.telemetry_privacy == "off":
        yield warning(
            "off: telemetry is stored and sent as it is given, against what beacon's document promises",
            "OUTBOX_TELEMETRY_PRIVACY=standard",
        )
        return
    wider = [f"{env_name('telemetry_allow_attributes')} adds {', '.join(settings.telemetry_allow_attributes)}"]
    wider = wider if settings.telemetry_allow_attributes else []
    if settings.telemetry_allow_log_bodies:
        wider.append("bodies of logs may leave")
    yield ok(f"standard; {'; '.join(wider) or 'nothing is added to what may leave'}")


def _secret_files(patient: Patient) -> Iterator[Finding]:
    key = patient.settings.client_key_file or patient.settings.client_cert_file
    if key is None:
        yield ok("no client certificate is used")
    elif not key.exists():
        yield problem(f"{key}: there is no such file", f"correct {env_name('client_key_file')}")
    else:
        yield from modes([key])


CHECKS = (
    Check("settings", None, _settings),
    Check("lease", Need.SETTINGS, _lease),
    Check("licence", Need.SETTINGS, _licence),
    Check("privacy", Need.SETTINGS, _privacy),
    Check("client key", Need.SETTINGS, _secret_files),
)
