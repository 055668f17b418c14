"Fixtures of the server's tests: a shared server, servers with other settings, and `metavoice serve` as a process."

import io
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason='needs pip install "metavoice[serve]"')
import httpx  # noqa: E402
import soundfile  # noqa: E402

from metavoice.generate.tts import TTS  # noqa: E402
from metavoice.serve.app import start_server  # noqa: E402
from metavoice.serve.config import ServerConfig  # noqa: E402

ROOT = Path(__file__).parents[2]
SHORT = "The dog slept."
SENTENCES = ["The old man walked to the river.", "Where is the red book?", "The dog and the cat slept quietly."]
COMMAND = [sys.executable, "-m", "metavoice.cli", "serve"]
ENVIRONMENT = os.environ | dict(PYTHONPATH=str(ROOT))


class Client(httpx.Client):
    "An HTTP client with a shortcut for speech."

    def speak(self, text=SHORT, **body):
        return self.post("/v1/audio/speech", json=dict(model="nano", input=text) | body)

    def stream_speech(self, text, **body):
        "A context manager with the response, whose body is read by the caller."
        body = dict(model="nano", input=text, response_format="pcm") | body
        return self.stream("POST", "/v1/audio/speech", json=body)


@contextmanager
def run_server(tts, folder, **settings):
    "Start a server in a thread; yields it and a client."
    config = dict(port=0, threads=1, voices=str(folder)) | settings
    server = start_server(ServerConfig(**config), tts)
    try:
        with Client(base_url=server.url, timeout=600) as http:
            yield server, http
    finally:
        server.stop()
        server.thread.join(60)


@contextmanager
def run_process(folder, *flags, **environment):
    "Start `metavoice serve`; yields the process, its address, and a function that returns the lines of its log."
    path = folder / "log"
    command = [*COMMAND, "--port", "0", "--threads", "1", "--voices", str(folder / "voices"), *flags]
    with (
        open(path, "a+b") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT | environment) as process,
    ):

        def lines():
            return [json.loads(line) for line in path.read_bytes().splitlines() if line.startswith(b"{")]

        def event(name):
            return next((o for o in lines() if o.get("event") == name and o.get("pid") == process.pid), None)

        try:
            assert wait_until_true(lambda: process.poll() is not None or event("ready"), 300), path.read_text()
            assert process.poll() is None, path.read_text()
            yield process, event("listening")["url"], lines
        finally:
            if process.poll() is None:
                process.kill()


def wait_until_true(condition, seconds=60.0):
    "Wait for a condition, and return what it returns."
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def check_error(response, status, *words):
    "Check that a response is an error in OpenAI's format, whose message contains words."
    assert response.status_code == status, response.content[:500]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert all(word in error["message"] for word in words), error


def read_sound(data, **kwargs):
    "Return samples and sample rate of a sound file in bytes."
    return soundfile.read(io.BytesIO(data), **kwargs)


# Tests get these functions as fixtures, because test modules don't import from each other.


@pytest.fixture(scope="session")
def wait_until():
    return wait_until_true


@pytest.fixture(scope="session")
def assert_error():
    return check_error


@pytest.fixture(scope="session")
def decode():
    return read_sound


@pytest.fixture(scope="session")
def serve_process():
    return run_process


@pytest.fixture(scope="session")
def tts():
    return TTS.from_pretrained(device="cpu")


@pytest.fixture(scope="session")
def reference(tts):
    "The bytes of a recording."
    return Path(tts.bundle.voices["af_heart"]).read_bytes()


@pytest.fixture
def serve(tts, tmp_path):
    "A function that starts a server with given settings, for a `with` statement."
    return lambda **settings: run_server(tts, tmp_path, **settings)


@pytest.fixture(scope="session")
def served(tts, tmp_path_factory):
    "A server with default settings, and a client."
    with run_server(tts, tmp_path_factory.mktemp("voices")) as both:
        yield both


@pytest.fixture
def server(served):
    return served[0]


@pytest.fixture
def http(served):
    return served[1]
