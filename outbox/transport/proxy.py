"""The proxy on the way to beacon: what HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY name."""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import Sequence
from importlib.util import find_spec

import httpcore
import httpx

from outbox.errors import ConfigError
from outbox.transport.config import is_loopback
from outbox.transport.secret import Secret


def proxy_for(url: httpx.URL) -> httpx.Proxy | None:
    """The proxy for ``url`` by the current environment; None: no proxy.

    Raises ``ConfigError`` for an unusable proxy URL; the message does not contain its password. Loopback never uses a
    proxy: its plain http would send the licence to another machine.
    """
    if is_loopback(url.host) or urllib.request.proxy_bypass(url.host):
        return None
    proxies = urllib.request.getproxies()
    named = proxies.get(url.scheme) or proxies.get("all")
    if not named:
        return None
    try:
        proxy = httpx.Proxy(named if "://" in named else f"http://{named}")
        port = proxy.url.port
        cut = b"@" in proxy.url.raw_path or "@" in proxy.url.fragment
        if not proxy.url.host or (port is not None and not 0 < port < 65536) or cut:
            raise ValueError("no host, no port, or a password with / or #, of which the beginning looks like a port")
    except (httpx.InvalidURL, ValueError):
        # From None: the original message may repeat the proxy's password.
        raise ConfigError(
            "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY is not a proxy URL; give http://HOST:PORT (a / or # in a password as "
            "%2F or %23), or set NO_PROXY for the host of beacon"
        ) from None
    if proxy.url.scheme.startswith("socks") and not find_spec("socksio"):
        raise ConfigError("the environment names a SOCKS proxy; run: pip install 'httpx[socks]'")
    return proxy


def wire_proxy(proxy: httpx.Proxy, context: ssl.SSLContext | None) -> httpcore.Proxy:
    """httpcore's form of ``proxy``. ``context``: beacon's TLS context, also used for a proxy with an https URL."""
    at = proxy.url
    return httpcore.Proxy(
        url=httpcore.URL(scheme=at.raw_scheme, host=at.raw_host, port=at.port, target=b"/"),
        auth=proxy.raw_auth,
        ssl_context=context if at.scheme == "https" else None,
    )


def secrets_of(proxy: httpx.Proxy | None) -> Sequence[Secret]:
    """The secrets of a proxy that an error message may repeat: its password, or the user name that is all it has."""
    if proxy is None or proxy.raw_auth is None:
        return ()
    user, password = proxy.raw_auth
    return (Secret((password or user).decode()),)
