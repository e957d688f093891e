"""HTTP connections, by way of the proxy that the environment names.

That is `https_proxy` or `http_proxy`, but for the hosts of `no_proxy`.
"""

import base64
import http.client
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

PORTS = {"http": 80, "https": 443}


def proxy_of(parts):
    """The parts of the URL of the proxy for a URL (its parts); None where there is none."""
    host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(host):
        return None
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def connect(parts, timeout) -> http.client.HTTPConnection:
    """A connection, not opened yet, to the host of a URL (its parts); timeout in seconds."""
    proxy, secure = proxy_of(parts), parts.scheme == "https"
    if proxy is None:
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        return kind(parts.hostname, parts.port, timeout=timeout)
    there = (proxy.hostname, proxy.port or PORTS.get(proxy.scheme, 80))
    if not secure:
        return _ByProxy(*there, parts.netloc.rpartition("@")[2], _allowed(proxy), timeout)
    connection = http.client.HTTPSConnection(*there, timeout=timeout)
    connection.set_tunnel(parts.hostname, parts.port or PORTS["https"], _allowed(proxy))
    return connection


def _allowed(proxy) -> dict:
    """Headers for the user and password in a proxy's URL, if any."""
    if not proxy.username:
        return {}
    words = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(words.encode()).decode()}"}


class _ByProxy(http.client.HTTPConnection):
    """A connection to a proxy of plain HTTP, which is asked for whole URLs of a host."""

    def __init__(self, proxy_host, proxy_port, host, headers, timeout):
        super().__init__(proxy_host, proxy_port, timeout=timeout)
        self._wanted, self._proxy_headers = host, headers

    def putrequest(self, method, url, *args, **kwargs):
        super().putrequest(method, f"http://{self._wanted}{url}", *args, **kwargs)
        for name, value in self._proxy_headers.items():
            self.putheader(name, value)
