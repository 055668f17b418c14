"The Wyoming protocol with the client of its package, and clients that break its rules."

import asyncio
import contextlib
import json
import signal
import socket
import time

import httpx
import pytest
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncClient, AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

from metavoice import __version__
from metavoice.core.errors import OptionError
from metavoice.generate.voice import Voice
from metavoice.serve.app import start_server
from metavoice.serve.config import ServerConfig
from metavoice.serve.wyoming import WyomingServer

SHORT = "The dog slept."
TWO = "The old man walked to the river. Where is the red book?"
LONG = "The old man walked to the river. Where is the red book? The dog and the cat slept quietly. " * 20
HEAD = b'{"type": "synthesize", "data_length": %d}\n'


@contextlib.contextmanager
def run_wyoming(tts, folder, **settings):
    "Start a server that speaks both protocols, in a thread."
    config = ServerConfig(**dict(port=0, wyoming=0, threads=1, voices=str(folder)) | settings)
    server = start_server(config, tts, server_class=WyomingServer)
    try:
        yield server
    finally:
        server.stop()
        server.thread.join(60)


@pytest.fixture(scope="module")
def wyoming(tts, tmp_path_factory):
    with run_wyoming(tts, tmp_path_factory.mktemp("voices"), denoise=False) as server:
        yield server


@pytest.fixture
def wyoming_with(tts, tmp_path):
    return lambda **settings: run_wyoming(tts, tmp_path, **dict(denoise=False) | settings)


def ask(server, *events, until=AudioStop, pause=0.0):
    "Send events while reading; return what is received up to an event of a type, or to the end of the connection."

    async def write(client):
        with contextlib.suppress(OSError):  # the server may have ended the connection
            for event in events:
                await client.write_event(event if isinstance(event, Event) else event.event())
                await asyncio.sleep(pause)

    async def run():
        client, found = AsyncTcpClient(*server.wyoming_address), []
        await client.connect()
        writing = asyncio.create_task(write(client))
        while (event := await client.read_event()) is not None:
            found.append(event)
            if until.is_type(event.type):
                break
        writing.cancel()
        with contextlib.suppress(OSError):
            await client.disconnect()
        return found

    return asyncio.run(asyncio.wait_for(run(), 120))


def sound(events):
    "Return the samples of the events, 48,000 bytes a second; all have one format."
    chunks = [AudioChunk.from_event(event) for event in events if AudioChunk.is_type(event.type)]
    assert {(chunk.rate, chunk.width, chunk.channels) for chunk in chunks} == {(24_000, 2, 1)}
    return b"".join(chunk.audio for chunk in chunks)


def types(events):
    return [event.type for event in events if not AudioChunk.is_type(event.type)]


def connect(server, words=b""):
    client = socket.create_connection(server.wyoming_address, timeout=30)
    client.sendall(words)
    return client


def read_until_closed(client):
    data = b""
    try:
        while part := client.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


def read_some(client):
    with client:
        return client.recv(1000)


def test_the_description(wyoming):
    (info,) = ask(wyoming, Describe(), until=Info)
    (program,) = Info.from_event(info).tts
    assert (program.name, program.version, program.installed) == ("metavoice", __version__, True)
    assert program.supports_synthesize_streaming and program.attribution.url.startswith("https://")
    languages = {voice.name: voice.languages for voice in program.voices}
    assert languages["af_heart"] == ["en-US"] and languages["bm_george"] == ["en-GB"] and len(languages) == 6
    assert all(voice.installed and voice.description and voice.attribution.name for voice in program.voices)


def test_registered_voices_are_described_and_spoken(wyoming_with, tts):
    with wyoming_with(voice_names=("narrator=Ada Lovelace",)) as server:
        server.service.store.add("Ada Lovelace", Voice(tts.voice("af_bella").embedding))
        (info,) = ask(server, Describe(), until=Info)
        assert "Ada Lovelace" in {voice.name for voice in Info.from_event(info).tts[0].voices}
        for name in ("Ada Lovelace", "narrator"):
            assert types(ask(server, Synthesize(SHORT, SynthesizeVoice(name)))) == ["audio-start", "audio-stop"]


@pytest.mark.parametrize(
    "voice",
    [None, SynthesizeVoice("bf_emma"), SynthesizeVoice("nova", speaker="any"), SynthesizeVoice(language="en_GB")],
)
def test_a_text(wyoming, voice):
    events = ask(wyoming, Synthesize(SHORT, voice, context={"a": 1}))
    assert types(events) == ["audio-start", "audio-stop"]
    assert 0.3 < len(sound(events)) / 48_000 < 8


def test_several_texts_on_one_connection(wyoming):
    async def run():
        async with AsyncClient.from_uri("tcp://{}:{}".format(*wyoming.wyoming_address)) as client:
            for _ in range(2):  # the second is sent before the first has ended
                await client.write_event(Synthesize(SHORT).event())
            await client.write_event(Ping("hello").event())
            found = []
            while types(found).count("audio-stop") < 2 or "pong" not in types(found):
                found.append(await client.read_event())
            return found

    found = asyncio.run(asyncio.wait_for(run(), 60))
    assert [one for one in types(found) if one != "pong"] == ["audio-start", "audio-stop"] * 2
    assert Pong.from_event(next(event for event in found if Pong.is_type(event.type))).text == "hello"


def test_a_text_in_pieces_as_home_assistant_sends_it(wyoming, monkeypatch):
    "Each sentence is spoken once, also though the whole text comes again at the end."
    said, real = [], wyoming.service.split_text

    def split(text, *args):
        said.append(text)
        return real(text, *args)

    monkeypatch.setattr(wyoming.service, "split_text", split)
    parts = [SynthesizeChunk(TWO[n : n + 4]) for n in range(0, len(TWO), 4)]
    events = [SynthesizeStart(SynthesizeVoice("bm_george")), *parts, Synthesize(TWO), SynthesizeStop()]
    found = ask(wyoming, *events, until=SynthesizeStopped, pause=0.01)
    assert types(found) == ["audio-start", "audio-stop", "synthesize-stopped"]
    assert said == ["The old man walked to the river. ", "Where is the red book?"]
    assert 1.5 < len(sound(found)) / 48_000 < 12


def test_the_first_sentence_is_spoken_before_the_text_is_complete(wyoming):
    async def run():
        async with AsyncTcpClient(*wyoming.wyoming_address) as client:
            await client.write_event(SynthesizeStart().event())
            await client.write_event(SynthesizeChunk(f"{SHORT} And then the other").event())
            assert AudioStart.is_type((await client.read_event()).type)
            await client.write_event(SynthesizeChunk(" one slept too.").event())
            await client.write_event(SynthesizeStop().event())
            while not SynthesizeStopped.is_type((await client.read_event()).type):
                pass

    asyncio.run(asyncio.wait_for(run(), 60))


def test_what_cannot_be_said_joins_the_next_sentence(wyoming):
    parts = ["你好你好你好你好。 ", "😀😀😀! ", "The dog slept and slept. ", "你好。"]
    events = [SynthesizeStart(), *map(SynthesizeChunk, parts), SynthesizeStop()]
    assert types(ask(wyoming, *events, until=SynthesizeStopped, pause=0.05))[-1] == "synthesize-stopped"
    nothing = [SynthesizeStart(), SynthesizeChunk("你好。"), SynthesizeStop()]
    (error,) = ask(wyoming, *nothing, until=SynthesizeStopped)
    assert Error.from_event(error).code == "text"


@pytest.mark.parametrize(
    "event, code, words",
    [
        (Synthesize(SHORT, SynthesizeVoice("nobody")), "voice_not_found", "use af_heart"),
        (Synthesize(SHORT, SynthesizeVoice(language="de")), "option", "en-US"),
        (Synthesize("<speak/>", text_format="ssml"), "option", "use text"),
        (Synthesize(""), "text", "empty"),
        (Synthesize("x" * 5000), "text", "4096"),
        (Synthesize("half a \ud800"), "text", "surrogate"),
        (Event("synthesize", dict(text=7)), "option", "string"),
        (Event("synthesize", dict(text=SHORT, voice=[1])), "option", "voice"),
    ],
)
def test_errors_are_events(wyoming, event, code, words):
    "And the connection ends."
    if isinstance(event, Synthesize) and "\ud800" in event.text:  # the package can't send it
        client = connect(wyoming, b'{"type": "synthesize", "data": {"text": "half a \\ud800"}}\n')
        answer = json.loads(read_until_closed(client).partition(b"\n")[2])
    else:
        (error,) = ask(wyoming, event)
        answer = error.data
    assert answer["code"] == code and words in answer["text"], answer


def test_a_long_text_in_pieces_is_refused(wyoming_with):
    with wyoming_with(max_text=100) as server:
        events = [SynthesizeStart(), *[SynthesizeChunk("x" * 30)] * 5]
        assert Error.from_event(ask(server, *events)[-1]).code == "text"
        events = [SynthesizeStart(), *[SynthesizeChunk("÷" * 20 + " a. ")] * 4, SynthesizeStop()]
        error = Error.from_event(ask(server, *events, pause=0.2)[-1])  # too many words in all pieces together
        assert "characters in words" in error.text


# what must not harm


@pytest.mark.parametrize(
    "words, answer",
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "isn't a Wyoming event"),
        (b"[" * 60_000 + b"\n", "isn't a Wyoming event"),
        (b'{"type": "describe"' + b" " * 100_000, "more than 65536 bytes"),
        (HEAD % 10**9, "data_length is 1000000000"),
        (b'{"type": "audio-chunk", "payload_length": 1000000000}\n', "payload_length is"),
        (b'{"type": "synthesize", "data_length": "many"}\n', "data_length is many"),
        (HEAD % 6 + b'[1, 2]', "isn't a Wyoming event"),
        (b"\x00\xff\n", "isn't a Wyoming event"),
        (b'{"type": ["synthesize"]}\n', "type of an event"),
    ],
)
def test_broken_events_end_the_connection(wyoming, words, answer):
    client = connect(wyoming, words)
    assert answer in read_until_closed(client).decode() or b" " * 1000 in words  # which may be reset while it is sent
    assert types(ask(wyoming, Describe(), until=Info)) == ["info"]


def test_unknown_events_and_payloads_are_dropped(wyoming):
    audio = Event("audio-chunk", dict(rate=16_000, width=2, channels=1), bytes(20_000))
    assert b'"pong"' in read_some(connect(wyoming, b'{"type": "ping", "data": {"text": "\\ud800"}}\n'))
    events = [audio, Event("transcribe"), Event("anything", dict(a=1)), SynthesizeChunk("no"), SynthesizeStop()]
    assert types(ask(wyoming, *events, Describe(), until=Info)) == ["info"]


def test_many_events(wyoming):
    "A flood of events is answered in order, without a backlog in memory."
    found = ask(wyoming, *[Describe()] * 300, Ping("end"), until=Pong)
    assert types(found) == ["info"] * 300 + ["pong"]


@pytest.mark.parametrize("words", [b"", b'{"type": "descr', HEAD % 1000, HEAD % 1000 + b'{"text": "a'])
def test_a_silent_client_is_disconnected(wyoming_with, words):
    with wyoming_with(read_timeout=0.4) as server:
        assert read_until_closed(connect(server, words)) == b""
        assert types(ask(server, Describe(), until=Info)) == ["info"]


def test_a_trickle_does_not_keep_a_place(wyoming_with):
    with wyoming_with(read_timeout=0.5) as server:
        client, began = connect(server), time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() < began + 20:
                client.sendall(b"{")
                time.sleep(0.05)
        assert time.monotonic() < began + 10


def test_a_text_that_does_not_end_has_a_deadline(wyoming_with):
    with wyoming_with(timeout=1.0, read_timeout=0.3) as server:
        error = Error.from_event(ask(server, SynthesizeStart(), SynthesizeChunk("The dog"))[-1])
        assert error.code == "timeout"


def test_a_client_that_reads_nothing_is_disconnected(wyoming_with, wait_until):
    with wyoming_with(stall=0.5, max_batch=1) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.servers[-1].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # connections inherit it
        client.connect(server.wyoming_address)
        text = json.dumps(dict(text=LONG)).encode()
        client.sendall(HEAD % len(text) + text)
        assert wait_until(lambda: server.service.speech_service.jobs)
        (job,) = server.service.speech_service.jobs
        assert wait_until(lambda: not server.service.speech_service.jobs and not server.server_state.connections)
        assert job.disconnected and job.seconds < 60  # LONG has two minutes


def test_a_client_that_disconnects_frees_its_place(wyoming_with, wait_until):
    with wyoming_with(max_batch=1, queue=0) as server:
        text = json.dumps(dict(text=LONG)).encode()
        client = connect(server, HEAD % len(text) + text)
        assert wait_until(lambda: server.service.num_jobs())
        assert Error.from_event(ask(server, Synthesize(SHORT))[-1]).code == "busy"
        client.close()
        assert wait_until(lambda: not server.service.num_jobs())
        assert types(ask(server, Synthesize(SHORT))) == ["audio-start", "audio-stop"]
        assert wait_until(lambda: server.service.metrics.left._value.get() == 1)


def test_connections_are_limited_with_those_of_http(wyoming_with, wait_until):
    with wyoming_with(max_connections=3, read_timeout=30) as server:
        clients = [connect(server) for _ in range(3)]
        assert wait_until(lambda: len(server.server_state.connections) == 3)
        assert read_until_closed(connect(server, b'{"type": "describe"}\n')) == b""
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{server.url}/health")
        for client in clients:
            client.close()
        assert wait_until(lambda: not server.server_state.connections)
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_the_places_are_shared_with_http(wyoming_with):
    "Requests of both protocols run in one batch and are counted together."
    with wyoming_with() as server, httpx.Client(base_url=server.url, timeout=60) as http:
        ask(server, Synthesize(SHORT))
        assert http.post("/v1/audio/speech", json=dict(input=SHORT)).status_code == 200
        metrics = http.get("/metrics").text
        assert 'metavoice_requests_total{route="wyoming",status="200"} 1.0' in metrics
        assert "metavoice_first_byte_seconds_count 2.0" in metrics


def test_at_the_end_a_running_text_is_completed_and_a_new_one_refused(wyoming_with, wait_until):
    with wyoming_with() as server:
        service = server.service

        async def run():
            address = server.wyoming_address
            async with AsyncTcpClient(*address) as first, AsyncTcpClient(*address) as idle:
                await first.write_event(SynthesizeStart().event())
                await first.write_event(SynthesizeChunk(f"{SHORT} And then the other").event())
                assert AudioStart.is_type((await first.read_event()).type)
                await idle.write_event(Describe().event())
                assert Info.is_type((await idle.read_event()).type)
                server.stop()
                assert await idle.read_event() is None
                await first.write_event(SynthesizeChunk(" dog slept.").event())
                await first.write_event(SynthesizeStop().event())
                await first.write_event(Synthesize(SHORT).event())
                found = []
                while (event := await first.read_event()) is not None:
                    found.append(event)
                return found

        found = asyncio.run(asyncio.wait_for(run(), 60))
        assert types(found)[:2] == ["audio-stop", "synthesize-stopped"] and types(found)[2:] in ([], ["error"])
        server.thread.join(60)
        assert not server.thread.is_alive() and service.status == "stopping"
        with pytest.raises(OSError):
            connect(server)


def test_an_error_of_the_server_has_no_detail(wyoming, monkeypatch):
    def split(*args):
        raise ValueError("a secret")

    monkeypatch.setattr(wyoming.service, "split_text", split)
    error = Error.from_event(ask(wyoming, Synthesize(SHORT))[-1])
    assert error.code == "internal" and "secret" not in error.text


@pytest.mark.parametrize("host, keys, allowed", [("0.0.0.0", 1, False), ("127.0.0.1", 1, True), ("0.0.0.0", 0, True)])
def test_no_wyoming_beside_api_keys_on_a_network(host, keys, allowed):
    settings = dict(host=host, api_keys=("a-key-of-16-letters",) * keys, wyoming=10200)
    if allowed:
        assert ServerConfig(**settings).wyoming == 10200
    else:
        with pytest.raises(OptionError, match="has no authentication"):
            ServerConfig(**settings)


def test_a_port_in_use(wyoming, tmp_path):
    taken = ServerConfig(port=0, wyoming=wyoming.wyoming_address[1], voices=str(tmp_path))
    with pytest.raises(OptionError, match="in use.*choose another --wyoming or --host"):
        start_server(taken, wyoming.service.tts, server_class=WyomingServer)


@pytest.mark.slow
def test_sigterm_finishes_a_running_text(tmp_path, serve_process):
    "With the command as a process: the audio is complete, the exit code is 0, and the log has no text."
    with serve_process(tmp_path, "--wyoming", "0", METAVOICE_DENOISE="no") as (process, _, lines):
        url = next(line["url"] for line in lines() if line.get("event") == "listening for Wyoming")

        async def run():
            async with AsyncClient.from_uri(url) as client:
                await client.write_event(Synthesize(LONG[:400]).event())
                assert AudioStart.is_type((await client.read_event()).type)
                process.send_signal(signal.SIGTERM)
                found = []
                while (event := await client.read_event()) is not None:
                    found.append(event)
                return found

        found = asyncio.run(asyncio.wait_for(run(), 120))
        assert types(found) == ["audio-stop"] and len(sound(found)) / 48_000 > 8
        assert process.wait(60) == 0
    log = (tmp_path / "log").read_text()
    assert "river" not in log and "Traceback" not in log
    request = next(line for line in lines() if line.get("event") == "request")
    assert (request["route"], request["status"], request["characters"]) == ("wyoming", 200, 400)
    assert request["audio"] > 8 and request["first"] > 0
