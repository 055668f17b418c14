"Clients that say nothing, read nothing or ask too much; what the others notice of them."

import errno
import io
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile

from metavoice.core.storage import LocalFolder
from metavoice.serve.app import start_server
from metavoice.serve.config import ServerConfig
from metavoice.serve.connections import TimedProtocol
from metavoice.serve.job import SpeechJob
from metavoice.serve.service import SpeechService

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "metavoice.cli", "serve"]
ENVIRONMENT = os.environ | dict(PYTHONPATH=str(ROOT))
SHORT = "The dog slept."
LONG = "The old man walked to the river. Where is the red book? The dog and the cat slept quietly. " * 20


def connect(server, words=b""):
    "Return a connection on which these bytes were sent."
    host, port = server.url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), timeout=30)
    client.sendall(words)
    return client


def head(body_bytes, path="/v1/audio/speech", content="application/json"):
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content}\r\nContent-Length: {body_bytes}\r\n\r\n"
    ).encode()


def speech_request(text, **body):
    data = json.dumps(dict(model="nano", input=text, response_format="wav") | body).encode()
    return head(len(data)) + data


def read_until_closed(client):
    data = b""
    try:
        while part := client.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


@pytest.mark.parametrize("words", [b"", b"GET /health HTTP/1.1\r\nHost: loc", head(1000), head(1000) + b"{"])
def test_a_silent_client_is_disconnected(serve, words):
    with serve(read_timeout=0.5) as (server, http):
        client = connect(server, words)
        answer = read_until_closed(client)
        assert answer.startswith(b"HTTP/1.1 408") or not words and answer == b"", answer
        assert http.get("/health").status_code == 200


def test_a_trickle_does_not_keep_a_place(serve):
    "A byte now and then doesn't extend the time for the body."
    with serve(read_timeout=0.6) as (server, http):
        client, began = connect(server, head(1000)), time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() < began + 20:
                client.sendall(b" ")
                time.sleep(0.1)
        assert time.monotonic() < began + 10


def test_connections_are_limited(serve):
    with serve(max_connections=5, read_timeout=30) as (server, http):
        http.get("/health")
        waiting = [connect(server) for _ in range(4)]
        assert read_until_closed(connect(server, b"GET /health HTTP/1.1\r\n")) == b""
        assert http.get("/health").status_code == 200
        for client in waiting:
            client.close()
        for _ in range(100):
            try:
                assert httpx.get(f"{server.url}/health").status_code == 200
                break
            except httpx.HTTPError:
                time.sleep(0.05)
        else:
            raise AssertionError("the places are still taken")


def test_a_client_that_reads_nothing_loses_its_place(serve, monkeypatch, wait_until):
    "Others are served meanwhile, also when one request runs at a time."
    monkeypatch.setattr("metavoice.serve.api.SpeechAPI._make_job", small_buffer)
    with serve(max_batch=1, stall=300.0, queue=8) as (server, http):
        silent = ask_and_read_nothing(server)
        assert wait_until(lambda: any(job.is_blocked for job in server.service.speech_service.jobs))
        assert http.speak().status_code == 200
        silent.close()


def test_a_client_that_reads_nothing_is_disconnected(serve, monkeypatch, wait_until):
    monkeypatch.setattr("metavoice.serve.api.SpeechAPI._make_job", small_buffer)
    with serve(max_batch=1, stall=1.0, queue=8) as (server, http):
        silent = ask_and_read_nothing(server)
        assert wait_until(lambda: server.service.speech_service.jobs)
        assert wait_until(lambda: not server.service.speech_service.jobs)
        assert http.speak().status_code == 200
        silent.close()


def ask_and_read_nothing(server):
    "Return a connection on which a long text was asked for, with a small buffer for what comes."
    silent = connect(server)
    silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    silent.sendall(speech_request(LONG))
    return silent


def small_buffer(self, segments, options, chunk, **kwargs):
    "A job that holds a second of sound for its client."
    if chunk is not None:
        options = replace(options, takes=1)
    return SpeechJob(segments, options, chunk, **dict(deterministic=False, max_buffered=1.0) | kwargs)


# uploads


def flac(seconds, rate=48_000, channels=1):
    file = io.BytesIO()
    soundfile.write(file, np.zeros((int(seconds * rate), channels), dtype="int16"), rate, format="flac")
    return file.getvalue()


def test_uploads_have_a_queue_of_their_own(serve, monkeypatch, wait_until):
    "Further recordings get 429 with a time to wait; sentences are spoken all the same."
    gate = threading.Event()

    def embed(self, data, name):
        gate.wait(60)
        return self.tts.voice(next(iter(self.tts.bundle.voices)))

    monkeypatch.setattr("metavoice.serve.api.SpeechAPI.embed_recording", embed)
    with serve(uploads=2) as (server, http):
        codes = []

        def upload(n):
            files = dict(file=("a.flac", b"fLaC"))
            answer = httpx.post(f"{server.url}/v1/voices", data=dict(name=f"v{n}"), files=files, timeout=120)
            codes.append((answer.status_code, answer.headers.get("retry-after")))

        threads = [threading.Thread(target=upload, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        assert wait_until(lambda: len(codes) == 4)
        assert set(codes) == {(429, "2")}
        assert http.speak().status_code == 200
        gate.set()
        for thread in threads:
            thread.join(60)
        assert sorted(code for code, _ in codes) == [201, 201, 429, 429, 429, 429]


def test_samples_of_all_channels_count(serve, assert_error):
    with serve() as (_, http):
        many = dict(file=("many.flac", flac(30, 192_000, 8)))
        assert_error(http.post("/v1/voices", data=dict(name="many"), files=many), 400, "30,000,000 samples")


def test_a_text_is_checked_before_the_recording(serve, assert_error, monkeypatch):
    def embed(self, data, name):
        raise AssertionError("the recording was decoded")

    monkeypatch.setattr("metavoice.serve.api.SpeechAPI.embed_recording", embed)
    with serve() as (_, http):
        assert_error(http.post("/tts", data=dict(text="😀"), files=dict(audiodata=("a.ogg", b"x"))), 400, "")


# the end of the server, and of the disk


def test_those_who_wait_are_told_to_come_back(serve, wait_until):
    "At the end, a running request is completed; one that waits gets 503 with Retry-After."
    with serve(max_batch=1, grace=300) as (server, _):
        answers = {}

        def speak(name, text):
            body = dict(model="nano", input=text, response_format="pcm")
            answers[name] = httpx.post(f"{server.url}/v1/audio/speech", json=body, timeout=120)

        first = threading.Thread(target=speak, args=("runs", LONG))
        first.start()
        service = server.service.speech_service
        assert wait_until(lambda: any(job.began for job in service.jobs))
        second = threading.Thread(target=speak, args=("waits", SHORT))
        second.start()
        assert wait_until(lambda: len(service.jobs) == 2)
        server.stop()
        second.join(60)
        first.join(120)
        assert (answers["waits"].status_code, answers["waits"].headers["retry-after"]) == (503, "5")
        assert answers["runs"].status_code == 200 and len(answers["runs"].content) > 100_000


def test_a_request_that_arrives_while_the_server_stops_is_answered(serve, monkeypatch):
    monkeypatch.setattr(TimedProtocol, "last_request", 5.0)
    with serve() as (server, http):
        http.get("/health/live").raise_for_status()  # the connection stays open
        server.stop()
        time.sleep(0.3)  # the server closes what it can close at once
        answer = http.post("/v1/audio/speech", json=dict(model="nano", input=SHORT, voice="af_heart"))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def test_long_texts_do_not_hold_up_short_ones(serve, monkeypatch):
    "While texts of the allowed length are split into sentences, a sentence is spoken."
    with serve() as (server, http):
        split, busy = server.service.split_text, threading.Event()

        def wait(text, *args):
            if text != SHORT:
                assert busy.wait(60)
            return split(text, *args)

        monkeypatch.setattr(server.service, "split_text", wait)
        answers = []

        def speak_long():
            body = dict(model="nano", input=LONG[:600], response_format="pcm")
            answers.append(httpx.post(f"{server.url}/v1/audio/speech", json=body, timeout=120).status_code)

        threads = [threading.Thread(target=speak_long) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        assert http.post("/v1/audio/speech", json=dict(model="nano", input=SHORT)).status_code == 200
        busy.set()
        for thread in threads:
            thread.join(120)
        assert answers == [200] * 3


def test_a_full_disk(serve, assert_error, monkeypatch):
    "The caller gets 507, without the path."
    def write(self, name, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(self.path / name))

    monkeypatch.setattr(LocalFolder, "write", write)
    with serve() as (server, http):
        recording = server.service.tts.bundle.voices["af_heart"].read_bytes()
        answer = http.post("/v1/voices", data=dict(name="me"), files=dict(file=("me.ogg", recording)))
        assert_error(answer, 507, "disk is full")
        assert str(server.service.store.folder) not in answer.text


def test_a_port_in_use_is_one_line(serve, tmp_path):
    "In JSON as the log, with exit code 1, before the model is loaded."
    with serve() as (server, _):
        command = [*COMMAND, "--port", server.url.rpartition(":")[2], "--voices", str(tmp_path)]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    line, = done.stderr.splitlines()
    assert done.returncode == 1 and "in use" in json.loads(line)["message"]


@pytest.mark.slow
def test_stopped_while_it_loads(tmp_path):
    command = [*COMMAND, "--port", "0", "--voices", str(tmp_path)]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        assert json.loads(process.stderr.readline())["event"] == "listening"
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(120) == 0 and all(json.loads(line) for line in rest.splitlines())


# addresses, headers, methods, files


def test_a_page_can_read_why_it_was_refused(serve):
    with serve(cors=("https://mine.example",), api_keys=("a-key-of-16-letters",)) as (_, http):
        mine = {"Origin": "https://mine.example"}
        refused = http.get("/v1/models", headers=mine)
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == mine["Origin"]
        asked = {"Access-Control-Request-Method": "POST"}
        asked["Access-Control-Request-Headers"] = "authorization,content-type,x-stainless-lang,x-stainless-retry-count"
        preflight = http.options("/v1/audio/speech", headers=mine | asked)
        assert preflight.status_code == 200 and "x-stainless-lang" in preflight.headers["access-control-allow-headers"]
        other = http.options("/v1/audio/speech", headers=asked | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_head_works_where_get_does(serve):
    with serve() as (_, http):
        for path in ("/v1/models", "/v1/voices", "/health", "/health/live", "/metrics"):
            answer = http.head(path)
            assert answer.status_code == 200 and answer.content == b"", path
        assert http.head("/v1/audio/speech").status_code == 405


def test_host_names_hold_on_every_address(serve, assert_error):
    with serve(host="0.0.0.0", hosts=("speech.example",), api_keys=("a-key-of-16-letters",)) as (server, http):
        url = f"http://127.0.0.1:{server.url.rpartition(':')[2]}/health"
        assert_error(httpx.get(url, headers=dict(Host="evil.example")), 421, "evil.example")
        for name in ("speech.example", "Speech.Example:80", "localhost", "127.0.0.1:9"):
            assert httpx.get(url, headers=dict(Host=name)).status_code == 200, name


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_voices_are_private(serve, tmp_path):
    with serve(voices=str(tmp_path / "new" / "voices")) as (server, http):
        recording = server.service.tts.bundle.voices["af_heart"].read_bytes()
        assert http.post("/v1/voices", data=dict(name="me"), files=dict(file=("a.ogg", recording))).status_code == 201
        folder = server.service.store.folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("voice_*")} == {0o600}


def test_a_text_that_becomes_too_many_words(serve, assert_error):
    with serve(max_text=100) as (_, http):
        assert_error(http.speak("÷" * 100), 400, "characters in words", "send it in parts")
        assert http.speak("It is 12:30 on 3 May.").status_code == 200


CHATTY = """
import logging, os, sys, warnings
from metavoice.serve.monitoring import capture_stderr, configure_logging, log_uncaught
with capture_stderr() as stream:
    configure_logging(stream)
    log_uncaught()
    os.write(2, b"a library in C: my secret\\n")
    print("Python: my secret", file=sys.stderr)
    warnings.warn("a warning: my secret")
    logging.getLogger("metavoice.serve").warning("ours")
"""


def test_nothing_but_json_on_standard_error():
    "Also what libraries write there, without the texts that it may quote."
    done = subprocess.run([sys.executable, "-c", CHATTY], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    found = sorted(json.loads(line)["message"] for line in done.stderr.splitlines())
    assert len(found) == 4 and found[:2] == ["a library wrote to standard error: %s"] * 2 and "ours" in found
    assert "secret" not in done.stderr


def test_an_end_before_the_first_sentence_is_no_failure(tts, tmp_path, monkeypatch):
    began = threading.Event()

    def speak(self, job):
        began.set()
        while not job.is_over():
            time.sleep(0.01)
        job.check()

    monkeypatch.setattr(SpeechService, "_speak", speak)
    server = start_server(ServerConfig(port=0, threads=1, voices=str(tmp_path)), tts, ready=False)
    assert began.wait(60) and server.service.status == "loading"
    server.stop()
    server.thread.join(60)
    server.service.loader.join(60)
    assert server.service.failure is None and server.service.status == "stopping"
