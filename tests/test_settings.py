"""Settings: every source and their order, every refusal, and that no secret is ever shown."""

from __future__ import annotations

import copy
import os
import pickle
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from outbox.core.lane import Lane
from outbox.errors import ConfigError
from outbox.settings import Settings, settings_table_markdown

CANARY = "canary-7f3a-do-not-print"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: empty, so that only what a test writes is read."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(**arguments: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Settings(**arguments)
    return str(caught.value)


def source_of(settings: Settings, name: str) -> str:
    return next(origin.source for origin in settings.sources() if origin.name == name)


def shown(settings: Settings, name: str) -> str:
    return next(origin.value_for_display for origin in settings.sources() if origin.name == name)


def telemetry_yaml(switches: str) -> str:
    return f"config:\n  langsmithLicenseKey: someone-elses-business\n  telemetry: {switches}\nredis: {{external: 1}}\n"


class TestSources:
    def test_nothing_given_means_the_documented_defaults(self) -> None:
        settings = Settings()
        assert settings.database_url == "sqlite:///outbox.db"
        assert settings.beacon_url == "https://beacon.langchain.com/v1/beacon"
        assert (settings.license_key, settings.license_file, settings.offline) == (None, None, False)
        assert (settings.batch_max_rows, settings.batch_max_bytes, settings.max_senders) == (1000, None, 4)
        assert (settings.poll_seconds, settings.lease_seconds, settings.request_timeout) == (1, 60, 15)
        assert (settings.backoff_base, settings.backoff_max, settings.max_attempts) == (1, 300, None)
        assert (settings.telemetry_max_entries, settings.telemetry_max_age) == (100_000, 24 * 3600)
        assert (settings.telemetry_max_bytes, settings.retention_max_bytes) == (256 * 2**20, 2**30)
        assert (settings.retention_sent, settings.retention_receipts) == (None, 90 * 24 * 3600)
        assert (settings.usage_max_entries, settings.sqlite_synchronous) == (None, "FULL")
        assert (settings.allow_http, settings.token_header, settings.token_public_key) == (False, "Authorization", None)
        assert (settings.telemetry_compression, settings.usage_compression) == ("none", "none")
        assert settings.model_fields_set == set()
        assert {origin.source for origin in settings.sources()} == {"default"}

    def test_each_source_wins_over_the_ones_below_it(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (directory / "langsmith_config.yaml").write_text(telemetry_yaml("{metrics: false}"))
        assert source_of(Settings(), "telemetry_metrics") == "langsmith_config.yaml"
        assert not Settings().telemetry_metrics

        (directory / "pyproject.toml").write_text("[tool.outbox]\ntelemetry_metrics = true\n")
        assert source_of(Settings(), "telemetry_metrics") == "pyproject.toml [tool.outbox]"
        assert Settings().telemetry_metrics

        (directory / "outbox.toml").write_text("telemetry_metrics = false\n")
        assert source_of(Settings(), "telemetry_metrics") == "outbox.toml"
        assert not Settings().telemetry_metrics

        monkeypatch.setenv("BEACON_METRICS_ENABLED", "true")
        assert source_of(Settings(), "telemetry_metrics") == "environment BEACON_METRICS_ENABLED"
        assert Settings().telemetry_metrics

        monkeypatch.setenv("OUTBOX_TELEMETRY_METRICS", "false")
        assert source_of(Settings(), "telemetry_metrics") == "environment OUTBOX_TELEMETRY_METRICS"
        assert not Settings().telemetry_metrics

        settings = Settings(telemetry_metrics=True)
        assert source_of(settings, "telemetry_metrics") == "argument"
        assert settings.telemetry_metrics

    def test_a_source_that_lacks_a_setting_leaves_it_to_the_next(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (directory / "outbox.toml").write_text("poll_seconds = 5\nmax_senders = 2\n")
        (directory / "pyproject.toml").write_text("[tool.outbox]\nbatch_max_rows = 7\n")
        monkeypatch.setenv("OUTBOX_MAX_SENDERS", "9")
        settings = Settings(offline=True)
        assert (settings.poll_seconds, settings.max_senders, settings.batch_max_rows) == (5, 9, 7)
        assert settings.model_fields_set == {"poll_seconds", "max_senders", "batch_max_rows", "offline"}

    @pytest.mark.parametrize(
        ("variable", "value", "name", "expected"),
        [
            ("BEACON_ENDPOINT", "https://beacon.example/v1/beacon", "beacon_url", "https://beacon.example/v1/beacon"),
            ("BEACON_METRICS_ENABLED", "false", "telemetry_metrics", False),
            ("BEACON_TRACING_ENABLED", "false", "telemetry_traces", False),
            ("BEACON_LOGGING_ENABLED", "0", "telemetry_logs", False),
        ],
    )
    def test_the_familiar_names_are_read(
        self, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, name: str, expected: object
    ) -> None:
        monkeypatch.setenv(variable, value)
        settings = Settings()
        assert getattr(settings, name) == expected
        assert source_of(settings, name) == f"environment {variable}"

    def test_an_empty_variable_counts_as_unset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OUTBOX_OFFLINE", "")
        monkeypatch.setenv("BEACON_METRICS_ENABLED", "")
        assert Settings().model_fields_set == set()

    def test_a_false_switch_differs_from_one_left_alone(self, directory: Path) -> None:
        (directory / "langsmith_config.yaml").write_text(telemetry_yaml("{metrics: false, traces: null}"))
        settings = Settings()
        assert settings.model_fields_set == {"telemetry_metrics"}
        assert not settings.lane_enabled(Lane.METRICS)
        assert settings.lane_enabled(Lane.TRACES)

    @pytest.mark.parametrize("path", ["pyproject.toml", "outbox.toml", "langsmith_config.yaml"])
    def test_a_file_that_says_nothing_about_the_outbox_changes_nothing(self, directory: Path, path: str) -> None:
        (directory / path).write_text("")
        assert Settings() == Settings.load()
        assert Settings().model_fields_set == set()


class TestConfigFile:
    def test_a_named_toml_replaces_the_files_of_the_directory(self, directory: Path) -> None:
        (directory / "outbox.toml").write_text("poll_seconds = 5\nmax_senders = 2\n")
        named = directory / "other" / "production.toml"
        named.parent.mkdir()
        named.write_text("poll_seconds = 7\n")
        settings = Settings.load(named)
        assert (settings.poll_seconds, settings.max_senders) == (7, 4)
        assert source_of(settings, "poll_seconds") == str(named)

    def test_a_named_yaml_gives_the_telemetry_switches_only(self, directory: Path) -> None:
        named = directory / "values.yml"
        named.write_text(telemetry_yaml("{metrics: false, traces: 'no', logs: off, interval: 5}"))
        settings = Settings.load(named)
        assert settings.model_fields_set == {"telemetry_metrics", "telemetry_traces", "telemetry_logs"}
        assert [lane for lane in Lane if settings.lane_enabled(lane)] == [Lane.USAGE]

    def test_a_named_pyproject_is_read_at_its_table(self, directory: Path) -> None:
        named = directory / "pyproject.toml"
        named.write_text("[project]\nname = 'host'\n[tool.outbox]\noffline = true\n")
        assert Settings.load(named).offline
        named.write_text("[project]\nname = 'host'\n")
        with pytest.raises(ConfigError, match=r"pyproject.toml has no \[tool.outbox\] table"):
            Settings.load(named)

    def test_arguments_and_environment_win_over_a_named_file(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (directory / "a.toml").write_text("max_senders = 2\nbatch_max_rows = 2\n")
        monkeypatch.setenv("OUTBOX_MAX_SENDERS", "3")
        settings = Settings.load(directory / "a.toml", batch_max_rows=4)
        assert (settings.max_senders, settings.batch_max_rows) == (3, 4)

    @pytest.mark.parametrize(
        ("name", "content", "complaint"),
        [
            ("absent.toml", None, r"cannot read the configuration file .*absent.toml: No such file"),
            ("absent.yaml", None, r"cannot read the configuration file .*absent.yaml: No such file"),
            ("settings.ini", "", r"settings.ini: must be a .toml file .* or a .yaml file"),
            ("latin.toml", b"\xff\xfe\xfa", r"latin.toml: not UTF-8 text"),
            ("broken.toml", f'license_key = "{CANARY}', r"broken.toml is not valid TOML at"),
            ("broken.yaml", f"config:\n  key: '{CANARY}\n", r"broken.yaml is not valid YAML at line"),
            ("tagged.yaml", f"config: !include {CANARY}", r"tagged.yaml is not valid YAML at line 1"),
            ("list.yaml", "[1, 2]", r"list.yaml: the document must be a mapping"),
            ("text.yaml", "config: yes please", r"text.yaml: config must be a mapping"),
            ("flat.yaml", "config: {telemetry: false}", r"flat.yaml: config.telemetry must be a mapping"),
            (
                "twice.yaml",
                f"config: {{telemetry: {{logs: false}}}}\nconfig: {CANARY}",
                r"at line 2, .* key twice; mend",
            ),
            ("pyproject.toml", "tool.outbox = 3", r"pyproject.toml: tool.outbox must be a table"),
        ],
    )
    def test_an_unusable_file_is_named_and_never_quoted(
        self, directory: Path, name: str, content: str | bytes | None, complaint: str
    ) -> None:
        if content is not None:
            (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ConfigError, match=complaint) as caught:
            Settings.load(directory / name)
        assert CANARY not in str(caught.value)

    def test_keys_that_are_no_switch_may_be_there_twice_or_come_by_a_merge(self, directory: Path) -> None:
        (directory / "langsmith_config.yaml").write_text(
            "services: {a: {logs: 1, logs: 2}}\n"
            "defaults: &on {metrics: true}\n"
            "sites: {first: {deep: &off {<<: *on, metrics: false}}}\n"
            "config: {telemetry: {<<: *off}}\n"
        )
        assert not Settings.load().telemetry_metrics

    def test_a_broken_file_of_the_directory_is_not_skipped(self, directory: Path) -> None:
        (directory / "langsmith_config.yaml").write_text("config: [")
        assert "langsmith_config.yaml is not valid YAML" in refusal()

    def test_a_malformed_switch_is_named_by_its_path_in_the_file(self, directory: Path) -> None:
        (directory / "langsmith_config.yaml").write_text(telemetry_yaml("{traces: perhaps}"))
        assert refusal() == "langsmith_config.yaml: config.telemetry.traces = 'perhaps': must be true or false"


class TestUnknownNames:
    @pytest.mark.parametrize(
        ("written", "meant"),
        [
            ("OUTBOX_POLL_SECOND", "OUTBOX_POLL_SECONDS"),
            ("OUTBOX_DATABASE", "OUTBOX_DATABASE_URL"),
            ("OUTBOX_LICENCE_KEY", "OUTBOX_LICENSE_KEY"),
            ("OUTBOX_TELEMETRY_METRIC", "OUTBOX_TELEMETRY_METRICS"),
            ("OUTBOX_offline", "OUTBOX_OFFLINE"),
        ],
    )
    def test_an_unknown_variable_is_refused_with_the_nearest_name(
        self, monkeypatch: pytest.MonkeyPatch, written: str, meant: str
    ) -> None:
        monkeypatch.setenv(written, CANARY)
        assert refusal() == f"environment {written}: no such setting; the nearest is {meant}"

    def test_an_unknown_key_of_a_file_is_refused_with_the_nearest_name(self, directory: Path) -> None:
        (directory / "outbox.toml").write_text(f'licence_key = "{CANARY}"\n')
        assert refusal() == "outbox.toml: licence_key: no such setting; the nearest is license_key"
        (directory / "outbox.toml").unlink()
        (directory / "pyproject.toml").write_text("[tool.outbox]\nOUTBOX_MAX_SENDERS = 3\n")
        assert refusal().startswith("pyproject.toml [tool.outbox]: OUTBOX_MAX_SENDERS: no such setting; the nearest is")

    @pytest.mark.parametrize(
        ("written", "meant"), [("metric", "metrics"), ("Traces", "traces"), ("trace", "traces"), ("log", "logs")]
    )
    def test_a_misspelt_switch_of_the_yaml_is_refused_and_keys_of_the_product_are_not(
        self, directory: Path, written: str, meant: str
    ) -> None:
        (directory / "langsmith_config.yaml").write_text(telemetry_yaml(f"{{interval: 5, {written}: false}}"))
        complaint = f"config.telemetry.{written}: no such switch; the nearest is {meant}"
        assert refusal() == f"langsmith_config.yaml: {complaint}"

    def test_an_unknown_argument_is_refused_with_the_nearest_name(self) -> None:
        assert refusal(lease=CANARY) == "argument lease: no such setting; the nearest is lease_seconds"
        assert "argument _env_file: no such setting" in refusal(_env_file=".env")

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("OUTBOX_TEST_REQUIRE_ALL", "1"),
            ("OUTBOX_SERVICE_HOST", "10.0.0.1"),
            ("OUTBOX_SERVICE_PORT", "8080"),
            ("OUTBOX_SERVICE_PORT_HTTP", "8080"),
            ("OUTBOX_PORT", "tcp://10.0.0.1:8080"),
            ("OUTBOX_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
            ("OUTBOX_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("OUTBOX_METRICS_SERVICE_HOST", "10.0.0.1"),
            ("OUTBOX_METRICS_PORT_9090_TCP_PROTO", "tcp"),
        ],
    )
    def test_names_of_the_tests_and_of_kubernetes_service_links_are_left_alone(
        self, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
    ) -> None:
        monkeypatch.setenv(variable, value)
        assert Settings().model_fields_set == set()

    def test_a_port_that_is_no_service_link_is_still_unknown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OUTBOX_PORT", "8080")
        assert "environment OUTBOX_PORT: no such setting" in refusal()


class TestRefusals:
    def test_every_problem_of_every_source_is_listed(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OUTBOX_POL_SECONDS", "1")
        monkeypatch.setenv("BEACON_TRACING_ENABLED", "mabye")
        (directory / "outbox.toml").write_text("batch_max_rows = 0\n")
        message = refusal(sqlite_synchronous="off", max_senders="many")
        assert message.splitlines()[0] == "5 settings are wrong:"
        assert sorted(message.splitlines()[1:]) == [
            "  - argument max_senders = 'many': must be a whole number",
            "  - argument sqlite_synchronous = 'off': must be 'FULL' or 'NORMAL'",
            "  - environment BEACON_TRACING_ENABLED = 'mabye': must be true or false",
            "  - environment OUTBOX_POL_SECONDS: no such setting; the nearest is OUTBOX_POLL_SECONDS",
            "  - outbox.toml: batch_max_rows = 0: must be greater than or equal to 1",
        ]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("batch_max_rows", 0),
            ("batch_max_rows", 100_001),
            ("batch_max_rows", 1.5),
            ("batch_max_rows", True),
            ("batch_max_bytes", 0),
            ("batch_max_bytes", False),
            ("poll_seconds", 0),
            ("poll_seconds", -1),
            ("poll_seconds", "nan"),
            ("poll_seconds", float("nan")),
            ("lease_seconds", float("inf")),
            ("request_timeout", True),
            ("request_timeout", "61min"),
            ("max_senders", 0),
            ("max_senders", None),
            ("max_attempts", 0),
            ("usage_max_entries", 0),
            ("telemetry_max_age", 0),
            ("retention_sent", -1),
            ("retention_receipts", "9" * 400 + "d"),
            ("retention_max_bytes", 2**63),
            ("offline", "maybe"),
            ("offline", 2),
            ("sqlite_synchronous", "OFF"),
            ("telemetry_compression", "br"),
            ("usage_compression", True),
            ("token_header", "Authorization: Bearer"),
            ("token_header", "X-Token\r\nHost"),
            ("license_key", 5),
            ("ca_file", 5),
            ("database_url", None),
        ],
    )
    def test_a_value_out_of_its_bounds_is_refused_by_name(self, name: str, value: object) -> None:
        message = refusal(**{name: value})
        assert message.startswith(f"argument {name}")
        assert "Input should be" not in message

    def test_a_lease_shorter_than_two_requests_says_both_values_and_what_to_change(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OUTBOX_LEASE_SECONDS", "29")
        message = refusal()
        assert message.startswith("OUTBOX_REQUEST_TIMEOUT (default) = 15.0: ")
        assert "OUTBOX_LEASE_SECONDS is 29;" in message
        assert "raise OUTBOX_LEASE_SECONDS to 30 or more, or lower OUTBOX_REQUEST_TIMEOUT to 14.5 or less" in message
        assert Settings(request_timeout=14.5).lease_seconds == 29

    def test_the_value_is_shown_as_it_was_written(self) -> None:
        assert refusal(request_timeout="61min") == (
            "argument request_timeout = '61min': must be less than or equal to 3600"
        )

    def test_a_backoff_that_ends_below_its_start_is_refused(self) -> None:
        assert "must be at least OUTBOX_BACKOFF_BASE, which is 10" in refusal(backoff_base=10, backoff_max=9)

    def test_a_client_key_without_its_certificate_is_refused(self) -> None:
        assert "set OUTBOX_CLIENT_CERT_FILE too" in refusal(client_key_file=Path("key.pem"))
        assert Settings(client_cert_file="cert.pem", client_key_file="key.pem").client_key_file == Path("key.pem")

    def test_settings_are_frozen(self) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            Settings().offline = True


class TestBeaconUrl:
    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            ("https://beacon.example", "https://beacon.example"),
            ("https://beacon.example/", "https://beacon.example"),
            ("HTTPS://beacon.example/v1/beacon//", "https://beacon.example/v1/beacon"),
            ("https://beacon.example:8443/v1/beacon/", "https://beacon.example:8443/v1/beacon"),
            ("http://127.0.0.1:8080/v1/beacon", "http://127.0.0.1:8080/v1/beacon"),
            ("http://127.8.9.1/", "http://127.8.9.1"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("http://LOCALHOST:8080", "http://LOCALHOST:8080"),
        ],
    )
    def test_accepted_addresses_lose_their_trailing_slash(self, given: str, kept: str) -> None:
        assert Settings(beacon_url=given).beacon_url == kept

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "beacon.example",
            "https://",
            "https:///v1/beacon",
            "ftp://beacon.example",
            "https://beacon.example:port",
            "https://[::1",
            "https://beacon.example/v1 beacon",
            "https://beacon.example/\nv1",
        ],
    )
    def test_what_is_no_http_address_is_refused_and_shown(self, url: str) -> None:
        assert refusal(beacon_url=url).startswith(f"argument beacon_url = {url!r}: must ")

    @pytest.mark.parametrize(
        "url",
        [
            "http://beacon.example/v1/beacon",
            "http://10.0.0.1/",
            "http://localhost.example/",
            "http://127.0.0.1.example/",
            "http://0.0.0.0/",
            "http://127.1/",
        ],
    )
    def test_plain_http_leaves_this_machine_only_when_allowed(self, url: str) -> None:
        message = refusal(beacon_url=url)
        assert "use https://, or set OUTBOX_ALLOW_HTTP=true" in message
        assert Settings(beacon_url=url, allow_http=True).beacon_url == url.rstrip("/")

    @pytest.mark.parametrize(
        "url",
        [
            f"https://user:{CANARY}@beacon.example/",
            f"https://{CANARY}@beacon.example/",
            f"https://beacon.example/?license={CANARY}",
            f"https://beacon.example/#{CANARY}",
            f"http://localhost:{CANARY}@beacon.example/",
        ],
    )
    def test_an_address_that_carries_a_secret_is_refused_without_being_shown(self, url: str) -> None:
        message = refusal(beacon_url=url)
        assert message.startswith("argument beacon_url: must ")
        assert CANARY not in message


class TestUnits:
    @pytest.mark.parametrize(
        ("written", "seconds"),
        [
            ("90", 90),
            ("1.5", 1.5),
            ("250ms", 0.25),
            ("45 s", 45),
            ("5min", 300),
            ("5m", 300),
            ("24h", 86_400),
            ("24 H", 86_400),
            ("30 d", 2_592_000),
            ("2w", 1_209_600),
            (30, 30),
            (timedelta(hours=1), 3600),
        ],
    )
    def test_durations_are_read_as_people_write_them(self, written: object, seconds: float) -> None:
        assert Settings(telemetry_max_age=written).telemetry_max_age == seconds

    @pytest.mark.parametrize(
        ("written", "size"),
        [
            ("1000", 1000),
            ("10B", 10),
            ("64KiB", 65_536),
            ("256 MiB", 268_435_456),
            ("256Mi", 268_435_456),
            ("1.5gib", 1_610_612_736),
            ("10MB", 10_000_000),
            (4096, 4096),
        ],
    )
    def test_sizes_are_read_as_people_write_them(self, written: object, size: int) -> None:
        assert Settings(telemetry_max_bytes=written).telemetry_max_bytes == size

    @pytest.mark.parametrize("written", ["", "h", "a day", "24 hours", "1h30m", "-5s", "1e3", "५s", "5 MiB"])
    def test_what_is_no_duration_is_refused_with_the_units(self, written: str) -> None:
        expected = "must be a duration: seconds, or a number with ms, s, min, h, d or w"
        assert refusal(telemetry_max_age=written) == f"argument telemetry_max_age = {written!r}: {expected}"

    @pytest.mark.parametrize("written", ["", "MiB", "256M", "1G", "-1KB", "5min", "1,000"])
    def test_what_is_no_size_is_refused_with_the_units(self, written: str) -> None:
        expected = "must be a size: bytes, or a number with KiB, MiB, GiB (1024s) or KB, MB, GB (1000s)"
        assert refusal(telemetry_max_bytes=written) == f"argument telemetry_max_bytes = {written!r}: {expected}"

    def test_half_a_byte_is_refused(self) -> None:
        assert "must be a whole number of bytes" in refusal(batch_max_bytes="1.5B")

    def test_units_are_read_in_the_environment_and_in_files(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OUTBOX_RETENTION_SENT", "7 d")
        (directory / "outbox.toml").write_text('batch_max_bytes = "512KiB"\npoll_seconds = 0.5\n')
        settings = Settings()
        assert (settings.retention_sent, settings.batch_max_bytes, settings.poll_seconds) == (604_800, 524_288, 0.5)

    @pytest.mark.parametrize("seconds", [0.001, 0.25, 1, 59.5, 60, 90, 120, 3600, 86_400, 172_800, 2_592_000, 1e8])
    def test_a_duration_shown_reads_back_as_itself(self, seconds: float) -> None:
        settings = Settings(retention_receipts=seconds)
        assert Settings(retention_receipts=shown(settings, "retention_receipts")).retention_receipts == seconds

    @pytest.mark.parametrize("size", [0, 1, 1000, 1024, 1_000_000, 3 * 2**20, 2**30, 2**40])
    def test_a_size_shown_reads_back_as_itself(self, size: int) -> None:
        settings = Settings(retention_max_bytes=size)
        assert Settings(retention_max_bytes=shown(settings, "retention_max_bytes")).retention_max_bytes == size


class TestPerLane:
    def test_defaults_differ_by_the_class_of_the_lane(self) -> None:
        settings = Settings()
        assert [settings.retention_seconds(lane) for lane in Lane] == [30 * 86_400, 0, 0, 0]
        assert [settings.attempts_limit(lane) for lane in Lane] == [None, 20, 20, 20]

    def test_a_value_given_holds_for_every_lane_and_zero_is_a_value(self) -> None:
        settings = Settings(retention_sent=0, max_attempts=3)
        for lane in Lane:
            assert settings.retention_seconds(lane) == 0
            assert settings.attempts_limit(lane) == 3

    def test_no_switch_stops_usage(self) -> None:
        settings = Settings(telemetry_metrics=False, telemetry_traces=False, telemetry_logs=False)
        assert [settings.lane_enabled(lane) for lane in Lane] == [True, False, False, False]


class TestLicence:
    def test_it_comes_from_the_key_or_the_file(self, directory: Path) -> None:
        path = directory / "licence"
        path.write_text(f"\ufeff{CANARY}-file\r\n", encoding="utf-8")
        assert Settings().license() is None
        assert Settings(license_key=f" {CANARY}\n").license() == CANARY
        assert Settings(license_file=path).license() == f"{CANARY}-file"
        assert Settings(license_file=path, license_key=CANARY).license() == CANARY

    def test_a_replaced_file_is_read_anew(self, directory: Path) -> None:
        path = directory / "licence"
        path.write_text("first")
        settings = Settings(license_file=path)
        assert settings.license() == "first"
        path.write_text("second")
        assert settings.license() == "second"

    def test_the_stronger_source_wins_whether_it_gives_key_or_file(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (directory / "licence").write_text("from-the-file")
        monkeypatch.setenv("LANGSMITH_LICENSE_KEY", "familiar")
        assert Settings().license() == "familiar"
        monkeypatch.setenv("OUTBOX_LICENSE_FILE", "licence")
        assert Settings().license() == "from-the-file"
        assert shown(Settings(), "license_key") == "-"
        assert Settings(license_key="argument").license() == "argument"
        assert Settings(license_key=None).license() is None

    @pytest.mark.parametrize("content", [None, "directory", "pipe", "x" * 65_537])
    def test_a_file_that_cannot_be_read_is_named_with_what_to_do(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
    ) -> None:
        path = directory / "licence"
        if content == "directory":
            path.mkdir()
        elif content == "pipe":
            os.mkfifo(path)
        elif content is not None:
            path.write_text(content)
        monkeypatch.setenv("OUTBOX_LICENSE_FILE", str(path))
        with pytest.raises(ConfigError, match="check the path and the permissions") as caught:
            Settings().license()
        assert str(caught.value).startswith(f"environment OUTBOX_LICENSE_FILE ({path}): cannot be read: ")

    @pytest.mark.parametrize("inside", [" ", "\n", "\t", "\x00", "\x1b", "\u00e9", "\u200b"])
    def test_one_with_a_character_that_cannot_be_meant_is_refused_unprinted(self, directory: Path, inside: str) -> None:
        (directory / "licence").write_text(f"{CANARY}{inside}{CANARY}", encoding="utf-8")
        for settings in (Settings(license_key=f"{CANARY}{inside}{CANARY}"), Settings(license_file="licence")):
            with pytest.raises(ConfigError, match="copy it again, on one line") as caught:
                settings.license()
            assert CANARY not in str(caught.value)

    def test_an_empty_one_is_refused(self, directory: Path) -> None:
        (directory / "licence").write_text("\n")
        for settings in (Settings(license_key=" "), Settings(license_file="licence")):
            with pytest.raises(ConfigError, match="the licence is empty"):
                settings.license()


class TestTokenPublicKey:
    def test_it_is_the_pem_of_the_file(self, directory: Path) -> None:
        pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n"
        (directory / "key.pem").write_text(pem)
        assert Settings(token_public_key_file="key.pem").token_public_key == pem

    @pytest.mark.parametrize("kind", ["PRIVATE KEY", "CERTIFICATE"])
    def test_another_kind_of_pem_is_refused_unprinted(self, directory: Path, kind: str) -> None:
        (directory / "key.pem").write_text(f"-----BEGIN {kind}-----\n{CANARY}\n-----END {kind}-----\n")
        with pytest.raises(ConfigError, match="must hold a public key in PEM form") as caught:
            _ = Settings(token_public_key_file="key.pem").token_public_key
        assert CANARY not in str(caught.value)

    def test_a_missing_file_is_named(self) -> None:
        with pytest.raises(ConfigError, match=r"OUTBOX_TOKEN_PUBLIC_KEY_FILE from argument \(absent.pem\)"):
            _ = Settings(token_public_key_file="absent.pem").token_public_key


class TestSecrets:
    @pytest.mark.parametrize(
        "url",
        [
            f"postgresql://user:{CANARY}@db/outbox",
            f"postgresql+psycopg://user:a@{CANARY}@db/outbox",
            f"postgresql://user:a/{CANARY}@db/outbox",
            f"postgresql://user:a?{CANARY}@db/outbox",
            f"mysql://:{CANARY}@db/outbox",
            f"postgresql://user@db/outbox?sslmode=require&password={CANARY}",
            f"postgresql://user@db/outbox?sslPassword={CANARY}&sslmode=require",
        ],
    )
    def test_no_view_of_the_settings_shows_one(self, url: str) -> None:
        settings = Settings(license_key=CANARY, database_url=url)
        views = [repr(settings), str(settings), repr(settings.sources()), str(settings.model_dump())]
        views += [settings.model_dump_json(), repr(copy.deepcopy(settings)), repr([settings])]
        assert not [view for view in views if CANARY in view]
        assert settings.database_url == url
        assert settings.license() == CANARY
        assert shown(settings, "license_key") == "(set)"

    def test_a_database_url_without_a_password_is_shown_whole(self) -> None:
        for url in ("sqlite:////var/lib/o@b/outbox.db", "postgresql://user@db:5432/outbox?sslmode=require"):
            assert shown(Settings(database_url=url), "database_url") == url

    @pytest.mark.parametrize("url", [CANARY, f"user:{CANARY}@db/outbox", f"://{CANARY}", ""])
    def test_a_database_url_without_a_scheme_is_refused_unprinted(self, url: str) -> None:
        message = refusal(database_url=url)
        assert message.startswith("argument database_url: must be a SQLAlchemy URL")
        assert CANARY not in message

    def test_a_refusal_keeps_the_values_out_of_its_whole_chain(self) -> None:
        with pytest.raises(ConfigError) as caught:
            Settings(license_key=CANARY, token_header=f"Authorization: {CANARY}", offline="maybe")
        assert CANARY not in str(caught.value)
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)

    def test_a_secret_of_the_wrong_type_is_not_printed(self) -> None:
        assert CANARY not in refusal(license_key=[CANARY], max_senders=[CANARY], beacon_url=CANARY.encode())

    def test_a_long_value_is_cut(self) -> None:
        assert len(refusal(poll_seconds="9x" * 10_000)) < 250


class TestDocumentation:
    def test_sources_list_every_setting_once_under_its_environment_name(self) -> None:
        origins = Settings().sources()
        assert [origin.name for origin in origins] == list(Settings.model_fields)
        assert all(origin.env == f"OUTBOX_{origin.name.upper()}" for origin in origins)

    def test_the_table_has_a_row_for_each_setting(self) -> None:
        header, rule, *rows = settings_table_markdown().splitlines()
        assert (header, rule) == ("| setting | default | meaning |", "|---|---|---|")
        assert [row.split("`")[1] for row in rows] == [origin.env for origin in Settings().sources()]
        assert all(row.count("|") == 4 for row in rows)
        assert "| `OUTBOX_BATCH_MAX_BYTES` | 1 MiB usage / 4 MiB telemetry |" in settings_table_markdown()
        assert "| `OUTBOX_TELEMETRY_MAX_AGE` | 24 h |" in settings_table_markdown()

    def test_settings_survive_pickling_with_their_sources(self) -> None:
        settings = Settings(license_key=CANARY, poll_seconds="2 s")
        again = pickle.loads(pickle.dumps(settings))
        assert again == settings
        assert again.sources() == settings.sources()
        assert hash(again) == hash(settings)


class TestWhatTelemetryMayHold:
    def test_keys_come_as_text_with_commas_or_as_a_list(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = ("http.target", "app.*", "span:user.id")
        assert Settings().telemetry_allow_attributes == ()
        (directory / "outbox.toml").write_text(
            'telemetry_allow_attributes = ["http.target", "app.*", "span:user.id"]\n'
        )
        assert Settings().telemetry_allow_attributes == expected
        monkeypatch.setenv("OUTBOX_TELEMETRY_ALLOW_ATTRIBUTES", " http.target, app.*,span:user.id,")
        settings = Settings()
        assert settings.telemetry_allow_attributes == expected
        shown = {each.name: each.value_for_display for each in settings.sources()}
        assert shown["telemetry_allow_attributes"] == "http.target, app.*, span:user.id"

    @pytest.mark.parametrize("wrong", ["*", "app*", "a b", "body:x", "span:", "span:*", "a:b:c"])
    def test_what_is_no_key_is_refused_with_what_one_looks_like(
        self, monkeypatch: pytest.MonkeyPatch, wrong: str
    ) -> None:
        monkeypatch.setenv("OUTBOX_TELEMETRY_ALLOW_ATTRIBUTES", f"http.target,{wrong}")
        with pytest.raises(
            ConfigError, match=r"OUTBOX_TELEMETRY_ALLOW_ATTRIBUTES.*span:http\.target.*places: resource"
        ):
            Settings()

    def test_privacy_is_standard_or_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert Settings().telemetry_privacy == "standard"
        monkeypatch.setenv("OUTBOX_TELEMETRY_PRIVACY", "some")
        with pytest.raises(ConfigError, match="OUTBOX_TELEMETRY_PRIVACY = 'some'"):
            Settings()
