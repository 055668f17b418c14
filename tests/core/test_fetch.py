"References from the web: which addresses are fetched, and what is refused."

import socket
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from metavoice.core.errors import AudioError, OptionError
from metavoice.core.fetch import AllowedURL, WebAddress, check_url, fetch_recording, resolve_public_address

DATA = bytes(range(256)) * 100


@pytest.fixture(scope="module")
def web():
    "The base address of a server with the paths that the tests use; its host is never resolved."

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            places = {"/a/loop": "/a/loop", "/a/moved": "me.wav", "/a/file": "file:///etc/passwd", "/a/nowhere": ""}
            places["/a/private"] = "http://10.0.0.1/me.wav"
            place = places.get(self.path)
            self.send_response(302 if place is not None else 500 if self.path == "/a/broken" else 200)
            if place is not None:
                self.send_header("Location", place)
            if self.path == "/a/cut":
                self.send_header("Content-Length", str(len(DATA) + 1))
            self.send_header("X-Asked", self.headers["Host"])
            self.end_headers()
            if place is None:
                self.wfile.write(DATA)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://voices.example.com:{server.server_port}/a/"
    server.shutdown()
    server.server_close()


def resolve_example(host, port):
    "Resolve the host of the tests to this machine; all others as usual."
    return "127.0.0.1" if host == "voices.example.com" else resolve_public_address(host, port)


fetch = partial(fetch_recording, resolve=resolve_example)


def test_a_recording_and_its_name(web):
    assert fetch(web + "me%20too.wav?x=1#top") == (DATA, "me too.wav")
    assert fetch(web.replace("http:", "HTTP:").replace("voices", "VOICES") + "moved") == (DATA, "me.wav")
    assert fetch(web + "a", max_bytes=len(DATA))[0] == DATA


@pytest.mark.parametrize("path, words", [
    ("loop", "redirected more than 3 times"),
    ("file", "no valid URL"),
    ("private", "isn't public"),
    ("nowhere", "redirected more than 3 times"),
    ("broken", "status 500"),
    ("cut", "ends the transfer early"),
])
def test_answers_that_are_refused(web, path, words):
    with pytest.raises(AudioError, match=words):
        fetch(web + path)


def test_limits_of_size_and_time(web):
    with pytest.raises(AudioError, match=f"larger than {len(DATA) - 1} bytes"):
        fetch(web + "a", max_bytes=len(DATA) - 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        begin = time.monotonic()
        with pytest.raises(AudioError, match="longer than 0.2 s"):
            fetch(f"http://voices.example.com:{silent.getsockname()[1]}/", seconds=0.2)
        assert time.monotonic() - begin < 5


def test_a_connection_made_after_the_time_limit_is_closed():
    def resolve(host, port):
        time.sleep(0.3)
        return "127.0.0.1"

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        with pytest.raises(AudioError, match="longer than 0.1 s"):
            fetch_recording(f"http://voices.example.com:{server.getsockname()[1]}/", seconds=0.1, resolve=resolve)
        client = server.accept()[0]
        client.settimeout(5)
        with client:
            assert client.recv(1) == b""  # closed without a request


def test_a_name_that_resolves_slowly_is_given_up():
    with pytest.raises(AudioError, match="longer than 0.2 s"):
        fetch_recording("http://voices.example.com/", seconds=0.2, resolve=lambda host, port: time.sleep(2))


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000])
def test_what_is_no_http(answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reply():
            connection, _ = server.accept()
            connection.sendall(answer)
            connection.close()

        threading.Thread(target=reply, daemon=True).start()
        with pytest.raises(AudioError, match="unreachable or doesn't speak HTTP") as error:
            fetch(f"http://voices.example.com:{server.getsockname()[1]}/")
        assert "SSH" not in str(error.value)  # the answer of a foreign service isn't shown


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "0x7f000001", "10.1.2.3"])
def test_private_addresses_are_refused(address):
    with pytest.raises(AudioError, match="isn't public"):
        fetch_recording(f"http://{address}/me.wav")


def test_only_allowed_addresses_of_a_server():
    allowed = (AllowedURL.parse("https://voices.example.com/public"),)
    assert check_url("https://voices.example.com/public/me.wav", allowed).path == "/public/me.wav"
    assert check_url("https://voices.example.com:443/public/me.wav", allowed).netloc == "voices.example.com"
    for bad in ("https://voices.example.com/private/", "https://voices.example.com/public/%2e%2E/x", "https://a.b/",
                "http://voices.example.com/public/", "https://voices.example.com:444/public/", "me.wav"):
        with pytest.raises(AudioError):
            check_url(bad, allowed)
    with pytest.raises(AudioError, match="fetches no references"):
        check_url("https://voices.example.com/public/me.wav", ())
    with pytest.raises(OptionError, match="no URL to fetch from"):
        AllowedURL.parse("ftp://a/")


def test_strange_addresses():
    parts = ["http://", "https://", "a", "[", "]", ":", "@", "/", "\\", "..", "%2e", "%", "?", "#", "ü", "\n", "999999"]
    state = 1
    for _ in range(2000):
        text = ""
        for _ in range(state % 7 + 1):
            state = state * 1103515245 % 2**31 + 12345
            text += parts[state // 65536 % len(parts)]
        try:
            address = WebAddress.parse(text)
        except ValueError:
            continue
        assert WebAddress.parse(str(address)) == address and ".." not in address.path.split("/")
