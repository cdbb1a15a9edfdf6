"""Wall meters over HTTP, against a real server: products, credentials, and what fails."""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from greenllm.energy.calibration.wall import WallError, WallSample
from greenllm.energy.calibration.wall_url import UrlWall, watts_in


class Server(ThreadingHTTPServer):
    """Answers with what it is told to, and remembers who asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.status, self.location = b"41.5", 200, ""
        self.chunks = 1
        self.asked: list[tuple[str, str | None]] = []
        self.go_on = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(server.status)
        if server.location:
            self.send_header("Location", server.location)
        self.end_headers()
        for _ in range(server.chunks):
            self.wfile.write(server.body)
        if self.path == "/hangs":
            server.go_on.wait()

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.go_on.set()
    made.shutdown()
    thread.join()
    made.server_close()


def _wall(url: str, timeout_s: float = 30.0, **environment: str) -> UrlWall:
    return UrlWall(url, environment=environment, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("answer", "watts"),
    [
        (41.5, 41.5),
        ("41.5", 41.5),
        ({"PowerControl": [{"PowerConsumedWatts": 344}, {"PowerConsumedWatts": 90}]}, 344.0),
        ({"PowerWatts": {"Reading": 288.0}, "TemperatureCelsius": {"Reading": 30}}, 288.0),
        ({"id": 0, "apower": 41.5, "voltage": 231.2}, 41.5),
        ({"switch:0": {"apower": 41.5}}, 41.5),
        ({"StatusSNS": {"ENERGY": {"Power": 41, "Voltage": 230}}}, 41.0),
        ({"state": "41.5", "attributes": {"unit_of_measurement": "W"}}, 41.5),
        ({"state": "0.0415", "attributes": {"unit_of_measurement": "kW"}}, 41.5),
        ({"state": "41.5"}, 41.5),
        ({"meters": [{"power": 41.5}]}, 41.5),
        ({"state": "1041.5", "attributes": {"unit_of_measurement": "kWh"}}, None),
        ({"state": "unavailable", "attributes": {"unit_of_measurement": "W"}}, None),
        ({"PowerControl": []}, None),
        ({"PowerControl": [{"PowerConsumedWatts": None}]}, None),
        ({"apower": True}, None),
        ({"apower": -3}, None),
        ([1, 2], None),
        ({}, None),
    ],
)
def test_products(answer: object, watts: float | None) -> None:
    found = watts_in(json.dumps(answer))
    assert found == (None if watts is None else pytest.approx(watts))


@pytest.mark.parametrize("text", ["", "NaN", "1e999", "<html>", '{"apower": NaN}', "[" * 100_000])
def test_what_is_no_power_is_none(text: str) -> None:
    assert watts_in(text) is None


def test_the_power_now_is_asked_for(server: Server) -> None:
    server.body = b'{"apower": 42.5}'
    wall = _wall(f"{server.url}/rpc/Switch.GetStatus?id=0")
    assert wall.poll(7.0) == WallSample(7.0, 42.5)
    assert wall.name == f"{server.url}/rpc/Switch.GetStatus"
    assert wall.between(0.0, 9.0) == []
    assert server.asked == [("/rpc/Switch.GetStatus?id=0", None)]


def test_credentials_come_from_the_environment(server: Server) -> None:
    _wall(server.url, WALL_METER_TOKEN="secret").poll(0.0)
    _wall(server.url, WALL_METER_USER="me", WALL_METER_PASSWORD="pass").poll(0.0)
    basic = base64.b64encode(b"me:pass").decode()
    assert [said for _, said in server.asked] == ["Bearer secret", f"Basic {basic}"]


@pytest.mark.parametrize("token", ["sec\nret", "sec\u20acret"])
def test_credentials_that_cannot_be_sent_are_not_printed(server: Server, token: str) -> None:
    with pytest.raises(WallError, match="cannot be sent") as refusal:
        _wall(server.url, WALL_METER_TOKEN=token).poll(0.0)
    assert "ret" not in str(refusal.value)


def test_a_redirect_is_not_followed(server: Server) -> None:
    server.status, server.location = 302, f"{server.url}/elsewhere"
    with pytest.raises(WallError, match="HTTP 302"):
        _wall(server.url, WALL_METER_TOKEN="secret").poll(0.0)
    assert len(server.asked) == 1, "credentials went to one address only"


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://", "http://me:pass@127.0.0.1/", "http://["],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(WallError, match="--meter-watts: ") as refusal:
        _wall(url)
    assert "pass@" not in str(refusal.value)


def test_an_error_of_the_server_is_told(server: Server) -> None:
    server.status = 401
    with pytest.raises(WallError, match="HTTP 401 Unauthorized"):
        _wall(server.url).poll(0.0)


def test_an_answer_without_a_power_is_told(server: Server) -> None:
    server.body = b"<html>log in</html>"
    with pytest.raises(WallError, match="no power in the answer"):
        _wall(server.url).poll(0.0)


def test_an_answer_that_does_not_end_is_left(server: Server) -> None:
    server.body, server.chunks = b"1" * 100_000, 3
    with pytest.raises(WallError, match="larger than 256 kB"):
        _wall(server.url).poll(0.0)


def test_a_meter_that_does_not_answer_is_left(server: Server) -> None:
    with pytest.raises(WallError, match=r"timed out|takes too long"):
        _wall(f"{server.url}/hangs", timeout_s=0.2).poll(0.0)


def test_an_answer_that_drips_is_left(server: Server) -> None:
    """Each part comes in time, and all of them together do not."""
    server.body = b"1" * 100_000
    moments = iter(range(0, 1000, 20))
    wall = UrlWall(server.url, environment={}, timeout_s=30.0, clock=lambda: next(moments))
    with pytest.raises(WallError, match="takes too long"):
        wall.poll(0.0)


def test_nobody_there_is_told(server: Server) -> None:
    with pytest.raises(WallError, match="refused"):
        _wall("http://127.0.0.1:1/").poll(0.0)


def test_a_ca_file_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("no certificate")
    for name in (path, tmp_path / "missing.pem"):
        with pytest.raises(WallError, match="--ca-file"):
            UrlWall("https://127.0.0.1/", environment={}, ca_file=name)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate")
def test_certificates_are_checked(server: Server, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=meter"
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *words.split(), *names, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    with pytest.raises(WallError, match="self-signed certificate"):
        _wall(url).poll(0.0)
    wall = UrlWall(url, environment={}, ca_file=certificate, timeout_s=30.0)
    assert wall.poll(0.0).watts == 41.5
