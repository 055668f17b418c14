"`metavoice serve --ray` with real replicas, which are killed."
import io
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

pytest.importorskip("fastapi", reason='needs pip install "metavoice[serve]"')
import httpx  # noqa: E402
import soundfile  # noqa: E402

from metavoice.core.errors import OptionError  # noqa: E402
from metavoice.measure.server_trials import list_replicas  # noqa: E402
from metavoice.serve.config import ServerConfig  # noqa: E402
from metavoice.serve.ray_serve import ReplicatedSpeech  # noqa: E402

SENTENCES = ["The old man walked to the river.", "Where is the red book?", "The dog and the cat slept quietly."]
NO_SERVE = pytest.mark.skipif(
    not os.path.isdir("/proc") or subprocess.run([sys.executable, "-c", "from ray import serve"]).returncode != 0,
    reason='needs Linux and pip install "metavoice[ray]"',
)
SPEECH = "/v1/audio/speech"


def test_without_ray_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match=r'pip install "metavoice\[ray\]"'):
        ReplicatedSpeech(ServerConfig(ray="here"))


@pytest.fixture
def run_replicas(serve_process, tmp_path):
    "A context manager that starts `metavoice serve --ray`, stops it, and yields a client and the lines of its log."

    @contextmanager
    def run(replicas):
        with serve_process(tmp_path, "--ray", "--replicas", str(replicas), RAY_TMPDIR="/tmp") as (process, url, lines):
            try:
                with httpx.Client(base_url=url, timeout=300) as http:
                    yield http, lines
            finally:
                process.terminate()
                assert process.wait(60) == 0, lines()

    return run


def replica_ended(lines):
    "Whether the log tells of a replica that ended."
    return any("a replica ended while it answered" in line.get("message", "") for line in lines())


def check_sound(response):
    assert response.status_code == 200, response.text
    samples, rate = soundfile.read(io.BytesIO(response.content))
    assert len(samples) > 0.5 * rate


@NO_SERVE
@pytest.mark.slow
def test_a_killed_replica_loses_no_request(run_replicas):
    with run_replicas(2) as (http, lines):
        pids, began = list_replicas(), threading.Event()
        assert len(pids) == 2

        def ask(n):
            if n > 8:
                began.set()
            body = dict(model="nano", input=" ".join(SENTENCES), response_format="flac")
            return http.post(SPEECH, json=body)

        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(ask, range(32))
            began.wait(60)
            os.kill(pids[0], signal.SIGKILL)
            for response in answers:
                check_sound(response)
        assert replica_ended(lines)
        assert http.get("/health").json()["jobs"] == 0
        assert 'route="/v1/audio/speech",status="200"} 32.0' in http.get("/metrics").text


@NO_SERVE
@pytest.mark.slow
def test_the_only_replica_is_replaced_and_the_stream_goes_on(run_replicas):
    body = dict(model="nano", input=" ".join(10 * SENTENCES), response_format="pcm", seed=3)
    with run_replicas(1) as (http, lines):
        whole = http.post(SPEECH, json=body).content
        with http.stream("POST", SPEECH, json=body) as response:
            parts = response.iter_raw()
            received = [next(parts)]
            (pid,) = list_replicas()
            os.kill(pid, signal.SIGKILL)
            received += parts
        assert b"".join(received) == whole
        assert replica_ended(lines)
        error = http.post(SPEECH, json=body | dict(voice="nobody"))
        assert error.status_code == 404 and "there is no voice" in error.json()["error"]["message"]
        voice = http.post("/v1/voices", data=dict(name="Ada"), files=dict(file=("a.wav", make_recording(whole))))
        assert voice.status_code == 201, voice.text
        check_sound(http.post(SPEECH, json=dict(model="nano", input=SENTENCES[0], voice="Ada", response_format="flac")))
        assert [one["name"] for one in http.get("/v1/voices").json()["data"]][-1] == "Ada"


def make_recording(pcm):
    "A wav file of samples that the server has sent."
    file = io.BytesIO()
    soundfile.write(file, memoryview(pcm).cast("h"), 48_000, format="WAV", subtype="PCM_16")
    return file.getvalue()
