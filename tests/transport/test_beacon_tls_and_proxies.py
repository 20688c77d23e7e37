"""Private certificate authorities, client certificates, and the proxies of the environment."""

from __future__ import annotations

import base64
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from outbox.core.lane import Lane
from outbox.core.receipt import Receipt, Verdict
from outbox.errors import ConfigError
from tests.transport.support.batches import MakeTransport, batch_of, envelope
from tests.transport.support.certificates import NAME, Authority
from tests.transport.support.raw_server import (
    Connection,
    RawServer,
    Reply,
    answer,
    drip,
    hang_up,
    read_request,
    reset,
    send_bytes,
    silence,
)

DEADLINE = 2.0
"""Request timeout in seconds. Enough for all that comes before the fault, however busy the machine is."""


def serve(server: RawServer) -> RawServer:
    server.on("/verify", answer(200, b'{"token":"t"}'))
    server.on("/ingest-traces", answer(200, b'{"inserted_count":2}'))
    server.on("/v1/traces", answer(200, b"{}"))
    return server


def certainly_not_sent(receipt: Receipt) -> bool:
    """Whether the receipt is one of a verify: uncounted, since no batch was sent."""
    return receipt.verdict is Verdict.UNAVAILABLE and "nothing was sent" in receipt.reason


@pytest.fixture
def tls_server(authority: Authority) -> Iterator[RawServer]:
    with RawServer(tls=authority.server_context()) as server:
        yield serve(server)


def test_a_server_of_the_private_authority_is_trusted(
    tls_server: RawServer, authority: Authority, transport_to: MakeTransport
) -> None:
    transport = transport_to(tls_server.url, ca_file=authority.ca)
    assert transport.send(batch_of()).verdict is Verdict.DELIVERED
    megabytes = batch_of([envelope(Lane.TRACES, "x" * (3 << 20))], lane=Lane.TRACES)
    assert transport.send(megabytes).verdict is Verdict.DELIVERED


def test_a_server_of_an_unknown_authority_gets_no_licence(tls_server: RawServer, transport_to: MakeTransport) -> None:
    receipt = transport_to(tls_server.url).send(batch_of())
    tls_server.wait_for("connection broke")
    assert certainly_not_sent(receipt)
    assert "CERTIFICATE_VERIFY_FAILED" in receipt.reason
    assert tls_server.seen == []


def test_a_client_certificate_is_shown(authority: Authority, transport_to: MakeTransport) -> None:
    with RawServer(tls=authority.server_context(clients_of=authority)) as server:
        serve(server)
        transport = transport_to(
            server.url, ca_file=authority.ca, client_cert_file=authority.cert, client_key_file=authority.key
        )
        assert transport.send(batch_of()).verdict is Verdict.DELIVERED


def test_a_key_of_another_certificate_is_a_config_error(
    tmp_path: Path, authority: Authority, transport_to: MakeTransport
) -> None:
    other = Authority(tmp_path / "other")
    with pytest.raises(ConfigError, match="OUTBOX_CLIENT_KEY_FILE"):
        transport_to("https://x", client_cert_file=authority.cert, client_key_file=other.key)


def test_an_encrypted_key_is_a_config_error_and_no_question_on_the_terminal(
    tmp_path: Path, authority: Authority, transport_to: MakeTransport
) -> None:
    key = serialization.load_pem_private_key(authority.key.read_bytes(), None)
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )
    with pytest.raises(ConfigError, match=r"is encrypted.*OUTBOX_CLIENT_KEY_FILE"):
        transport_to("https://x", client_cert_file=authority.cert, client_key_file=tmp_path / "key.pem")


def renewed(path: Path, by: Path) -> None:
    """Replaces a file as certificates are renewed: by another one, in one step."""
    shutil.copy(by, path.with_suffix(".new")).replace(path)


def test_a_renewed_authority_is_trusted_without_a_restart(
    tmp_path: Path, tls_server: RawServer, authority: Authority, transport_to: MakeTransport
) -> None:
    trusted = shutil.copy(Authority(tmp_path / "former").ca, tmp_path / "trusted.pem")
    transport = transport_to(tls_server.url, ca_file=trusted)
    assert certainly_not_sent(transport.send(batch_of()))
    renewed(trusted, authority.ca)
    assert transport.send(batch_of()).verdict is Verdict.DELIVERED


def test_an_authority_that_was_taken_out_is_trusted_no_more_by_what_is_connected_already(
    tmp_path: Path, tls_server: RawServer, authority: Authority, transport_to: MakeTransport
) -> None:
    trusted = shutil.copy(authority.ca, tmp_path / "trusted.pem")
    transport = transport_to(tls_server.url, ca_file=trusted)
    assert transport.send(batch_of()).verdict is Verdict.DELIVERED
    renewed(trusted, Authority(tmp_path / "other").ca)
    assert "CERTIFICATE_VERIFY_FAILED" in transport.send(batch_of()).reason


def test_a_renewed_client_certificate_is_shown_once_its_key_is_there_too(
    tmp_path: Path, authority: Authority, transport_to: MakeTransport, caplog: pytest.LogCaptureFixture
) -> None:
    former = Authority(tmp_path / "former")
    cert, key = shutil.copy(former.cert, tmp_path / "cert.pem"), shutil.copy(former.key, tmp_path / "key.pem")
    with RawServer(tls=authority.server_context(clients_of=authority)) as server:
        serve(server)
        transport = transport_to(server.url, ca_file=authority.ca, client_cert_file=cert, client_key_file=key)
        assert transport.send(batch_of()).verdict is Verdict.UNAVAILABLE
        renewed(cert, authority.cert)
        assert transport.send(batch_of()).verdict is Verdict.UNAVAILABLE
        assert "those from before stay in use" in caplog.text
        renewed(key, authority.key)
        assert transport.send(batch_of()).verdict is Verdict.DELIVERED


def test_public_authorities_that_cannot_be_read_are_a_config_error(
    transport_to: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/authorities.pem")
    with pytest.raises(ConfigError, match=r"No such file or directory.*SSL_CERT_FILE"):
        transport_to(f"https://{NAME}")


def test_a_tls_handshake_that_never_ends_is_certainly_not_sent(
    authority: Authority, transport_to: MakeTransport
) -> None:
    with RawServer(on_connect=silence) as mute:
        url = mute.url.replace("http:", "https:")
        receipt = transport_to(url, ca_file=authority.ca, request_timeout=DEADLINE).send(batch_of())
        mute.wait_for("client hung up")
    assert certainly_not_sent(receipt), receipt


def test_a_tls_handshake_that_drips_is_cut_at_the_deadline(authority: Authority, transport_to: MakeTransport) -> None:
    with RawServer(on_connect=drip(b"\x16\x03\x03\x40\x00", byte=b"\x02")) as slow:
        url = slow.url.replace("http:", "https:")
        receipt = transport_to(url, ca_file=authority.ca, request_timeout=DEADLINE).send(batch_of())
        slow.wait_for("client hung up while it dripped many")
    assert certainly_not_sent(receipt), receipt


def test_a_dripping_answer_over_tls_is_cut_at_the_deadline(
    tls_server: RawServer, authority: Authority, transport_to: MakeTransport
) -> None:
    transport = transport_to(tls_server.url, ca_file=authority.ca, request_timeout=DEADLINE)
    assert transport.send(batch_of()).verdict is Verdict.DELIVERED
    tls_server.on("/ingest-traces", drip(b"HTTP/1.1 200 OK\r\nX-Slow: ", byte=b"a"))
    assert transport.send(batch_of()).verdict is Verdict.AMBIGUOUS
    tls_server.wait_for("client hung up while it dripped many")


def test_session_tickets_are_no_answer_of_a_server_that_reads_late(
    server: RawServer, authority: Authority, transport_to: MakeTransport
) -> None:
    """The server reads after more than half of the time, and the tickets of its handshake are unread until then."""
    token = transport_to(server.url)._tokens.get()

    def read_late(connection: Connection) -> None:
        connection.pause(5.5)
        assert read_request(connection.sock), "the whole batch"
        answer(200, b"{}")(connection)

    with RawServer(on_connect=within_tls(authority.server_context(), read_late)) as late:
        transport = transport_to(late.url.replace("http:", "https:"), ca_file=authority.ca, request_timeout=10.0)
        transport._tokens._verify = lambda: token
        receipt = transport.send(batch_of([envelope(Lane.TRACES, "x" * (6 << 20))] * 2, lane=Lane.TRACES))
    assert receipt.verdict is Verdict.DELIVERED


# ------------------------------------------------------------------------------------------------- proxies


def tunnel_to(port: int, drips: threading.Event | None = None) -> Reply:
    """A minimal CONNECT proxy: joins two sockets, for any requested name; byte by byte once ``drips`` is set."""

    def pump(source: socket.socket, sink: socket.socket, connection: Connection) -> None:
        try:
            while chunk := source.recv(65536):
                size = 1 if drips and drips.is_set() else len(chunk)
                for start in range(0, len(chunk), size):
                    sink.sendall(chunk[start : start + size])
                    connection.pause(0.05 if size < len(chunk) else 0)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def reply(connection: Connection) -> None:
        request = read_request(connection.sock)
        assert request is not None
        connection.server.seen.append(request)
        connection.sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with socket.create_connection(("127.0.0.1", port)) as upstream:
            back = threading.Thread(target=pump, args=(upstream, connection.sock, connection))
            back.start()
            pump(connection.sock, upstream, connection)
            back.join(10)

    return reply


def within_tls(context: ssl.SSLContext, reply: Reply) -> Reply:
    def secured(connection: Connection) -> None:
        with context.wrap_socket(connection.sock, server_side=True) as connection.sock:
            reply(connection)

    return secured


def asked_and(then: Reply) -> Reply:
    def reply(connection: Connection) -> None:
        request = read_request(connection.sock)
        assert request is not None
        connection.server.seen.append(request)
        then(connection)

    return reply


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_https_goes_through_the_proxy_of_the_environment(
    tls_server: RawServer,
    authority: Authority,
    transport_to: MakeTransport,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    with RawServer(on_connect=tunnel_to(tls_server.port)) as proxy:
        monkeypatch.setenv(variable, proxy.url.replace("http://", "http://user:p%40ss@"))
        transport = transport_to(f"https://{NAME}", ca_file=authority.ca)
        assert transport.send(batch_of()).verdict is Verdict.DELIVERED
        transport.close()
        (connect,) = proxy.seen
    assert (connect.method, connect.path) == ("CONNECT", f"{NAME}:443")
    assert connect.headers["proxy-authorization"] == f"Basic {base64.b64encode(b'user:p@ss').decode()}"
    assert "authorization" not in connect.headers
    assert all("proxy-authorization" not in seen.headers for seen in tls_server.seen)


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        pytest.param(asked_and(send_bytes(b"HTTP/1.1 407 Who are you\r\n\r\n")), None, id="407"),
        pytest.param(asked_and(send_bytes(b"HTTP/1.1 502 Bad\r\n\r\n")), None, id="502"),
        pytest.param(asked_and(reset), "reset", id="reset"),
        pytest.param(asked_and(hang_up), "hung up", id="hang up"),
        pytest.param(asked_and(silence), "client hung up", id="silence"),
        pytest.param(asked_and(drip(b"HTTP/1.1 ")), "client hung up while it dripped many", id="drip"),
    ],
)
def test_what_fails_while_the_proxy_is_asked_is_certainly_not_sent(
    transport_to: MakeTransport, monkeypatch: pytest.MonkeyPatch, reply: Reply, fault: str | None
) -> None:
    with RawServer(on_connect=reply) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        receipt = transport_to(f"https://{NAME}", request_timeout=DEADLINE).send(batch_of())
        if fault:
            proxy.wait_for(fault)
        assert [seen.method for seen in proxy.seen] == ["CONNECT"]
    assert certainly_not_sent(receipt), receipt


def test_a_proxy_behind_tls_is_trusted_as_beacon_is_and_its_connections_are_used_once(
    tls_server: RawServer, authority: Authority, transport_to: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second answer may be buffered between the two layers of TLS, where it is invisible before the next request."""
    with RawServer(on_connect=within_tls(authority.server_context(), tunnel_to(tls_server.port))) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("http://", "https://"))
        transport = transport_to(f"https://{NAME}", ca_file=authority.ca)
        assert [transport.send(batch_of()).verdict for _ in range(2)] == [Verdict.DELIVERED] * 2
        transport.close()
        assert [seen.method for seen in proxy.seen] == ["CONNECT"] * 3
    assert [seen.path for seen in tls_server.seen] == ["/verify", "/ingest-traces", "/ingest-traces"]


def test_a_proxy_is_told_an_ipv6_address_in_brackets(
    tls_server: RawServer, authority: Authority, transport_to: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawServer(on_connect=tunnel_to(tls_server.port)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        transport = transport_to("https://[2001:db8::1]:8443", ca_file=authority.ca)
        assert transport.send(batch_of()).verdict is Verdict.DELIVERED
        transport.close()
        assert proxy.seen[0].path == proxy.seen[0].headers["host"] == "[2001:db8::1]:8443"
    with RawServer() as proxy:
        proxy.on("http://[2001:db8::1]/verify", answer(200, b'{"token":"t"}'))
        proxy.on("http://[2001:db8::1]/ingest-traces", answer(200, b'{"inserted_count":2}'))
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        transport = transport_to("http://[2001:db8::1]", allow_http=True)
        assert transport.send(batch_of()).verdict is Verdict.DELIVERED


def test_a_handshake_that_drips_through_a_proxy_behind_tls_is_cut_at_the_deadline(
    authority: Authority, transport_to: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tunnel_to_a_drip(connection: Connection) -> None:
        connection.sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        assert connection.sock.recv(65536), "the client's side of the handshake"
        drip(b"\x16\x03\x03\x40\x00", byte=b"\x02")(connection)

    with RawServer(on_connect=within_tls(authority.server_context(), asked_and(tunnel_to_a_drip))) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("http://", "https://"))
        transport = transport_to(f"https://{NAME}", ca_file=authority.ca, request_timeout=DEADLINE)
        assert certainly_not_sent(transport.send(batch_of()))
        proxy.wait_for("client hung up while it dripped many")


def test_an_answer_that_drips_through_a_proxy_behind_tls_is_cut_at_the_deadline(
    tls_server: RawServer, authority: Authority, transport_to: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer reaches the proxy at once, as one record."""
    drips = threading.Event()

    def long_answer(connection: Connection) -> None:
        drips.set()
        answer(200, b'{"inserted_count":2}' + b" " * 8000)(connection)
        connection.wait_for_hang_up()

    tls_server.on("/ingest-traces", long_answer)
    with RawServer(on_connect=within_tls(authority.server_context(), tunnel_to(tls_server.port, drips))) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("http://", "https://"))
        receipt = transport_to(f"https://{NAME}", ca_file=authority.ca, request_timeout=DEADLINE).send(batch_of())
        tls_server.wait_for("client hung up")
    assert receipt.verdict is Verdict.AMBIGUOUS


def test_a_proxy_that_repeats_its_password_does_not_show_it(
    transport_to: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = base64.b64encode(b"user:hunter2").decode()
    told = f"HTTP/1.1 407 not hunter2 nor {sent}\r\n\r\n".encode()
    with RawServer(on_connect=asked_and(send_bytes(told))) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("http://", "http://user:hunter2@"))
        receipt = transport_to(f"https://{NAME}", request_timeout=DEADLINE).send(batch_of())
    assert "407 not *** nor dXNlcjp***" in receipt.reason  # "user:", and the password is masked


def test_a_user_name_that_is_all_a_proxy_asks_for_is_not_shown_either(
    transport_to: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawServer(on_connect=asked_and(send_bytes(b"HTTP/1.1 407 not hunter2\r\n\r\n"))) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("http://", "http://hunter2:@"))
        receipt = transport_to(f"https://{NAME}", request_timeout=DEADLINE).send(batch_of())
    assert "407 not ***" in receipt.reason


def test_loopback_never_goes_through_a_proxy(
    server: RawServer, transport_to: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawServer(on_connect=hang_up) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        assert transport_to(server.url).send(batch_of()).verdict is Verdict.DELIVERED
        assert proxy.connections == 0


def test_no_proxy_names_the_exceptions(
    server: RawServer, transport_to: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawServer(on_connect=hang_up) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", ".invalid")
        transport_to(f"https://{NAME}", request_timeout=DEADLINE).send(batch_of())
        assert proxy.connections == 0
        monkeypatch.setenv("NO_PROXY", "elsewhere.invalid")
        transport_to(f"https://{NAME}", request_timeout=DEADLINE).send(batch_of())
        assert proxy.connections == 1


@pytest.mark.parametrize(
    "proxy",
    [
        *("gopher://hunter2@x", "http://hunter2@[::1", "socks5://u:hunter2@x", "http://hunter2@x:bad"),
        *("http://hunter2@x:99999", "http://hunter2@x:0", "http://hunter2@"),
        *("http://u:12/hunter2@x:1", "http://u:12#hunter2@x:1", "http://u:12?hunter2@x:1"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_a_config_error_without_its_password(
    transport_to: MakeTransport, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(ConfigError) as caught:
        transport_to(f"https://{NAME}")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
