"""Machines that reach the net only by a proxy, as nodes of a cluster do."""

import http.server
import threading
from urllib.parse import urlsplit

import pytest

from pipeline.proxy import connect, proxy_of

HTTPS, HTTP = urlsplit("https://archive.test/tap"), urlsplit("http://archive.test:8080/tap")


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that notes what it is asked for, and refuses it; named by the environment."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_any(self):
            asked.append((self.command, self.path, self.headers.get("Proxy-Authorization")))
            self.send_error(503)

        do_CONNECT = do_GET = do_any  # noqa: N815

        def log_message(self, *args):
            pass

    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://me:pass@127.0.0.1:{server.server_port}")
        yield asked
        server.shutdown()


def test_https_goes_through_a_tunnel_of_the_proxy(proxy):
    with pytest.raises(OSError, match="503"):
        connect(HTTPS, 5).request("GET", "/tap/async")
    assert proxy == [("CONNECT", "archive.test:443", "Basic bWU6cGFzcw==")]


def test_http_asks_the_proxy_for_the_whole_url(proxy):
    connection = connect(HTTP, 5)
    connection.request("GET", "/tap/async")
    assert connection.getresponse().status == 503
    assert proxy == [("GET", "http://archive.test:8080/tap/async", "Basic bWU6cGFzcw==")]


def test_hosts_of_no_proxy_are_reached_directly(proxy, monkeypatch):
    monkeypatch.setenv("no_proxy", "archive.test")
    assert proxy_of(HTTPS) is None
    assert connect(HTTPS, 5).host == "archive.test"


def test_without_a_proxy_the_host_is_reached_directly(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert connect(HTTP, 5).host == "archive.test"
