"The server over real sockets: OpenAI's client, the first server's form, limits, keys, hang-ups, signals, and what strangers send."
import asyncio, io, json, os, signal, socket, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason='needs pip install "metavoice[serve]"')
import httpx, openai, soundfile

import metavoice.serve as serving
from metavoice.serve.config import ServerConfig
from metavoice.serve.scheduler import Disconnected
from metavoice.serve.service import SpeechJob, SpeechService
from metavoice.serve.app import start_server
from metavoice.generate.options import sampling_options
from metavoice.generate.tts import TTS
from metavoice.generate.voice import Voice

ROOT = Path(__file__).parents[1]
SHORT = "The dog slept."
LONG = " ".join(["The old man walked to the river.", "Where is the red book?", "The dog and the cat slept quietly."]*8)
KEY = "a-key-of-16-letters"
COMMAND = [sys.executable, "-c", "import sys; from metavoice.cli import main; sys.exit(main())", "serve"]


@pytest.fixture(scope="module")
def tts(): return TTS.from_pretrained(device="cpu")

@pytest.fixture(scope="module")
def reference(tts): return Path(tts.bundle.voices["rms"]).read_bytes()

@contextmanager
def serve(tts, folder, **settings):
    "A server in a thread, and a client."
    server = start_server(ServerConfig(**dict(port=0, threads=1, voices=str(folder)) | settings), tts)
    try:
        with httpx.Client(base_url=server.url, timeout=120) as http: yield server, http
    finally: server.stop(); server.thread.join(60)

@pytest.fixture(scope="module")
def served(tts, tmp_path_factory):
    with serve(tts, tmp_path_factory.mktemp("voices")) as both: yield both

@pytest.fixture
def http(served): return served[1]

def ask(http, text=SHORT, **body): return http.post("/v1/audio/speech", json=dict(model="nano", input=text) | body)

def wait(condition, seconds=20.):
    end = time.monotonic()+seconds
    while not (found := condition()) and time.monotonic() < end: time.sleep(.02)
    return found

def refused(answer, status, *words):
    "An error in OpenAI's shape."
    assert answer.status_code==status, answer.text
    error = answer.json()["error"]
    assert set(error)=={"message","type","param","code"} and all(word in error["message"] for word in words), error

def sound(samples, rate=16000, format="wav", **kw):
    file = io.BytesIO(); soundfile.write(file, samples, rate, format=format, **kw)
    return file.getvalue()


# OpenAI's client

@pytest.fixture(scope="module")
def client(served): return openai.OpenAI(base_url=f"{served[0].url}/v1", api_key="none", max_retries=0)

@pytest.mark.parametrize("format", ["wav", "mp3", "opus", "flac"])
def test_openai_client_in_each_format(client, tmp_path, format):
    client.audio.speech.create(model="nano", voice="rms", input=SHORT, response_format=format).write_to_file(tmp_path/"a")
    info = soundfile.info(tmp_path/"a")
    assert info.samplerate==48000 and .3 < info.duration < 8 or format=="wav"
    heard, rate = soundfile.read(tmp_path/"a")
    assert .3 < len(heard)/rate < 8 and abs(heard).max() > .05

def test_openai_client_streams_pcm(client):
    with client.audio.speech.with_streaming_response.create(model="nano", voice="slt", input=LONG[:200], response_format="pcm") as answer:
        began, times, size = time.perf_counter(), [], 0
        for part in answer.iter_bytes(): times.append(time.perf_counter()-began); size += len(part)
    assert len(times) > 3 and times[0] < times[-1]/2, times
    assert 1 < size/2/24000 < 30

def test_openai_client_sse_and_errors(client):
    with client.audio.speech.with_streaming_response.create(model="nano", voice="rms", input=SHORT, stream_format="sse", response_format="pcm") as answer:
        events = [json.loads(o[6:]) for o in answer.iter_lines() if o]
    assert [o["type"] for o in events[-2:]]==["speech.audio.delta", "speech.audio.done"] and events[-1]["usage"]["input_tokens"] > 1
    assert [o.id for o in client.models.list()]==["nano"] and client.models.retrieve("nano").id=="nano"
    with pytest.raises(openai.NotFoundError, match="no model 'tts-1'"): client.audio.speech.create(model="tts-1", voice="rms", input=SHORT)
    with pytest.raises(openai.BadRequestError, match="speed is 1.5"): client.audio.speech.create(model="nano", voice="rms", input=SHORT, speed=1.5)
    with pytest.raises(openai.BadRequestError, match="response_format"): client.audio.speech.create(model="nano", voice="rms", input=SHORT, response_format="aac")
    with pytest.raises(openai.NotFoundError, match="no voice 'alloy'"): client.audio.speech.create(model="nano", voice="alloy", input=SHORT)

def test_a_seed_gives_what_the_library_gives(tts, http):
    heard, _ = soundfile.read(io.BytesIO(ask(http, seed=5, response_format="wav", voice="slt").content), dtype="int16")
    expected = (tts.synthesise(SHORT, "slt", seed=5).samples.clamp(-1, 1)*32767).round().to(torch.int16)
    assert torch.equal(torch.from_numpy(heard), expected)


# the first server's form

def test_the_first_servers_form(http, reference):
    for form,files in [(dict(text=SHORT, guidance="3.0", top_p="0.95"), None), (dict(text=SHORT, speaker_ref_path="slt"), None), (dict(text=SHORT, speaker_ref_path=""), dict(audiodata=("a.ogg", reference)))]:
        answer = http.post("/tts", data=form, files=files)
        assert answer.status_code==200 and answer.headers["content-type"]=="audio/wav", answer.text
        heard, rate = soundfile.read(io.BytesIO(answer.content))
        assert rate==48000 and .3 < len(heard)/rate < 8
    refused(http.post("/tts", data=dict(text=SHORT, guidance="0.2")), 400, "guidance")
    refused(http.post("/tts", data=dict(text=SHORT, speaker_ref_path="slt"), files=dict(audiodata=("a.ogg", reference))), 400, "both")
    refused(http.post("/tts", data={}), 400, "text")

@pytest.mark.parametrize("path", ["/etc/passwd", "../../../etc/passwd", "metavoice/nano/voices/rms.ogg", "file:///etc/passwd", "~/.ssh/id_rsa", "rms.ogg", "a\0b", "", "//host/share"])
def test_no_file_of_the_server_is_read(http, tts, path):
    for path in (path, str(tts.bundle.voices["rms"]))[:2 if path else 1]:
        answer = http.post("/tts", data=dict(text=SHORT, speaker_ref_path=path)) if path else ask(http, voice="")
        assert answer.status_code in (400, 404), (path, answer.text)
        if "\0" not in path: assert ask(http, voice=path).status_code in (400, 404)

def test_addresses_are_refused_unless_listed(http):
    for url in ("http://127.0.0.1/a.wav", "https://example.com/a.wav", "ftp://example.com/a.wav"): refused(http.post("/tts", data=dict(text=SHORT, speaker_ref_path=url)), 400, "aren't fetched")

def test_listed_addresses_are_fetched_but_not_private_ones(tts, reference, tmp_path, monkeypatch):
    class World(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302 if self.path=="/v/out.ogg" else 200)
            if self.path=="/v/out.ogg": self.send_header("Location", "/metadata")
            self.end_headers(); self.wfile.write(reference)
        def log_message(self, *_): pass
    world = ThreadingHTTPServer(("127.0.0.1", 0), World); threading.Thread(target=world.serve_forever, daemon=True).start()
    base = f"http://voices.example.com:{world.server_port}/v/"
    try:
        with serve(tts, tmp_path, fetch_from=(base, f"http://127.0.0.1:{world.server_port}/")) as (server, http):
            def say(url): return http.post("/tts", data=dict(text=SHORT, speaker_ref_path=url))
            refused(say(f"http://127.0.0.1:{world.server_port}/v/a.ogg"), 400, "isn't public") # listed, and still private
            refused(say("http://10.0.0.1/a.ogg"), 400, "none of the addresses")
            monkeypatch.setattr(serving, "fetch", lambda url, places, most: original(url, places, most, address=lambda host, port: "127.0.0.1"))
            assert say(base+"a.ogg").status_code==200
            refused(say(base+"out.ogg"), 400, "none of the addresses")
    finally: world.shutdown(); world.server_close()

original = serving.fetch


# voices

def test_voices(tts, http, reference, served):
    made = http.post("/v1/voices", data=dict(name="Ada Lovelace"), files=dict(file=("a.ogg", reference)))
    assert made.status_code==201 and made.json()["owned_by"]=="user", made.text
    key = made.json()["id"]
    assert http.post("/v1/voices", data=dict(name="Ada Lovelace"), files=dict(file=("a.ogg", reference))).json()==made.json()
    assert {"rms", "slt", "awb", "Ada Lovelace"} <= {o["name"] for o in http.get("/v1/voices").json()["data"]}
    files = list(served[0].service.store.folder.iterdir())
    assert [o.name for o in files]==[f"{key}.safetensors"] and torch.allclose(Voice.load(files[0]).embedding, tts.voice("rms").embedding)
    for voice in (key, "ada lovelace", dict(id=key)): assert ask(http, voice=voice).status_code==200
    other = Path(tts.bundle.voices["slt"]).read_bytes()
    refused(http.post("/v1/voices", data=dict(name="ada lovelace"), files=dict(file=("a.ogg", other))), 409, "another voice")
    refused(http.post("/v1/voices", data=dict(name="rms"), files=dict(file=("a.ogg", other))), 409, "of the model")
    for name in ("../evil", "a/b", ".", "x"*65, "..\\evil", "a\nb"): refused(http.post("/v1/voices", data=dict(name=name), files=dict(file=("a.ogg", other))), 400)
    refused(http.delete("/v1/voices/rms"), 409); refused(http.delete("/v1/voices/nobody"), 404)
    for path in ("..%2f..%2fetc%2fpasswd", f"..%2f{key}", f"{key}.safetensors"): assert http.delete(f"/v1/voices/{path}").status_code==404
    assert http.delete(f"/v1/voices/{key}").json()==dict(id=key, object="voice", deleted=True)
    assert not list(served[0].service.store.folder.iterdir())
    refused(ask(http, voice=key), 404)


# what is sent by mistake or on purpose

@pytest.mark.parametrize("body,words", [
    (dict(input=""), "input"), (dict(input="   "), "text"), (dict(input="I smile 😀."), "😀"), (dict(input="x "*3000), "4096"), (dict(temperature=11), "temperature"), (dict(top_p=0), "top_p"), (dict(guidance=0.5), "guidance"),
    (dict(seed=-1), "seed"), (dict(seed=1.5), "seed"), (dict(pitch=1), "pitch"), (dict(voice=7), "voice"), (dict(instructions="Cheerfully."), "instructions"), (dict(stream_format="x"), "stream_format"), (dict(input=7), "input")])
def test_bad_bodies(http, body, words): refused(http.post("/v1/audio/speech", json=dict(model="nano", input=SHORT) | body), 400, words)

@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"model":"nano","input":"\\ud800"}', b'{"model":"nano","input":"a","temperature":NaN}', b'{"model":"nano","input":"a","top_p":1e999}', b"\xff\xfe",
                                     b'{"model":"nano","input":"a","seed":' + b"9"*5000 + b"}", b"["*90_000])
def test_bad_json(http, content): refused(http.post("/v1/audio/speech", content=content, headers={"Content-Type": "application/json"}), 400)

def test_sizes_are_checked_before_work(tts, tmp_path, reference):
    with serve(tts, tmp_path, max_text=20, max_upload=.05, max_voices=1) as (server, http):
        refused(ask(http, "This has more than twenty letters."), 400, "up to 20")
        refused(http.post("/v1/voices", data=dict(name="a"), files=dict(file=("a.ogg", b"x"*1_000_000))), 413, "larger")
        def endless():
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
            for _ in range(100): yield b"x"*100_000
        try: refused(http.post("/v1/voices", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=x"}), 413, "larger")
        except (httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError): pass # cut off while it was still sending
        assert ask(http).status_code==200

def test_broken_uploads(http, reference, served):
    "Everything a 4xx, in bounded memory; the full run has 500."
    from metavoice.measure.server_trials import make_broken_uploads, resident_memory
    http.post("/v1/voices", data=dict(name="x"), files=dict(file=("a.wav", sound(torch.zeros(16000).numpy())))) # warm
    before = resident_memory(os.getpid())
    for kind,name,data in make_broken_uploads(60, reference):
        answer = http.post("/v1/voices", data=dict(name="x"), files=dict(file=(name, data)))
        assert 400 <= answer.status_code < 500, (kind, answer.text)
    assert resident_memory(os.getpid()) < before + 150
    assert http.get("/v1/voices").status_code==200

def test_keys(tts, tmp_path):
    with serve(tts, tmp_path, api_keys=(KEY, "another-of-16-letters")) as (server, http):
        for key in (None, "wrong-key-of-16-letters", KEY[:-1], KEY+"x"):
            answer = ask(http) if key is None else http.get("/v1/models", headers=dict(Authorization=f"Bearer {key}"))
            refused(answer, 401, "API key"); assert answer.headers["www-authenticate"]=="Bearer"
        assert http.get("/metrics").status_code==401 and http.get("/health").status_code==200
        assert openai.OpenAI(base_url=f"{server.url}/v1", api_key="another-of-16-letters").models.list().data[0].id=="nano"
        assert "security" in http.get("/openapi.json").json()

def test_browsers_of_others_are_kept_out(tts, tmp_path, http):
    refused(http.get("/health", headers=dict(Host="evil.example")), 421, "evil.example")
    refused(http.post("/tts", data=dict(text=SHORT), headers=dict(Origin="https://evil.example")), 403)
    assert "access-control-allow-origin" not in http.get("/health").headers
    with serve(tts, tmp_path, cors=("https://mine.example",), hosts=("speech.local",)) as (_, http):
        answer = http.get("/health", headers=dict(Origin="https://mine.example", Host="speech.local"))
        assert answer.status_code==200 and answer.headers["access-control-allow-origin"]=="https://mine.example"
        assert http.options("/tts", headers={"Origin": "https://mine.example", "Access-Control-Request-Method": "POST"}).status_code==200
        refused(http.get("/health", headers=dict(Origin="https://evil.example")), 403)


# many at once

def test_requests_share_batches_and_keep_their_sound(served, tts, http):
    engine = served[0].service.speech_service.engine
    steps, tokens = engine.steps, engine.tokens
    texts = [SHORT, "Where is the red book?", "The old man walked to the river.", "The dog and the cat slept quietly."]*2
    with ThreadPoolExecutor(8) as pool: answers = list(pool.map(lambda o: ask(http, o[1], seed=o[0], response_format="wav"), enumerate(texts)))
    assert {o.status_code for o in answers}=={200}
    assert (engine.tokens-tokens)/(engine.steps-steps) > 2.5
    expected = tts.synthesise(texts[:2], seed=[0, 1])
    for answer,audio in zip(answers, expected):
        heard, _ = soundfile.read(io.BytesIO(answer.content), dtype="int16")
        assert torch.equal(torch.from_numpy(heard), (audio.samples.clamp(-1, 1)*32767).round().to(torch.int16))

def test_full_house_deadline_and_hang_up(tts, tmp_path):
    with serve(tts, tmp_path, rows=1, queue=0, timeout=60, denoise=False) as (server, http):
        studio = server.service.speech_service
        with http.stream("POST", "/v1/audio/speech", json=dict(model="nano", input=LONG, response_format="pcm")) as answer:
            parts = answer.iter_raw(); next(parts)
            busy = ask(http)
            refused(busy, 429, "no more can"); assert 1 <= int(busy.headers["retry-after"]) <= 60
            assert wait(lambda: studio.engine.busy()==1)
        assert wait(lambda: not studio.jobs and not studio.engine.waiting) # hung up: free again
        assert wait(lambda: b"metavoice_left_total 1.0" in http.get("/metrics").content)
        assert ask(http).status_code==200
    with serve(tts, tmp_path, timeout=.4, denoise=False) as (server, http):
        refused(ask(http, LONG, response_format="flac"), 504, "wasn't ready")
        assert wait(lambda: not server.service.speech_service.jobs)

@pytest.mark.parametrize("form", ["audio", "sse"])
def test_what_goes_wrong_after_the_beginning_isnt_hidden(tts, tmp_path, form):
    with serve(tts, tmp_path, denoise=False) as (server, http):
        with http.stream("POST", "/v1/audio/speech", json=dict(model="nano", input=LONG, response_format="pcm", stream_format=form)) as answer:
            parts = answer.iter_raw(); got = next(parts)
            for job in server.service.speech_service.jobs: job.deadline = 0
            if form=="audio":
                with pytest.raises(httpx.RemoteProtocolError): list(parts) # cut: half a sentence can't be taken for a whole one
            else:
                got += b"".join(parts)
                assert b'"code": "timeout"' in got and b"speech.audio.done" not in got

def test_who_hangs_up_while_waiting_frees_the_queue(tts, tmp_path):
    with serve(tts, tmp_path, rows=1, queue=4, denoise=False) as (server, http):
        with http.stream("POST", "/v1/audio/speech", json=dict(model="nano", input=LONG, response_format="pcm")) as answer:
            parts = answer.iter_raw(); next(parts) # held: a stream that is let go hangs up
            body = json.dumps(dict(model="nano", input=LONG)).encode()
            with socket.create_connection((http.base_url.host, http.base_url.port)) as caller:
                caller.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                assert wait(lambda: len(server.service.speech_service.jobs)==2) # it waits for its turn
            assert wait(lambda: "metavoice_left_total 1.0" in http.get("/metrics").text)
            assert len(server.service.speech_service.jobs)==1 # its place is free while the other is still being spoken
        assert wait(lambda: not server.service.speech_service.jobs)

def test_who_waits_when_the_studio_closes_is_told(tts):
    studio, told = SpeechService(tts, rows=1, queue=1), threading.Event()
    first, second = (SpeechJob(tts.pieces([LONG], tts.voice("rms"), 1), sampling_options(tts.bundle), "codec", deterministic=False) for _ in range(2))
    second.ready = told.set
    for job in (first, second): studio.submit(job)
    assert wait(lambda: first.began) and second.began is None
    studio.close()
    assert told.wait(20)
    assert isinstance(second.take(), Disconnected)


# health, metrics, description

def test_health_and_metrics(http):
    assert http.get("/health").json()["status"]=="ok" and http.get("/health/live").status_code==http.get("/health/ready").status_code==200
    ask(http)
    text = http.get("/metrics").text
    for name in ('metavoice_requests_total{route="/v1/audio/speech",status="200"}', "metavoice_batch_rows_bucket", "metavoice_audio_seconds_total", "metavoice_first_byte_seconds_count", "process_resident_memory_bytes"): assert name in text, name
    http.get("/some/path/of/a/stranger")
    assert "stranger" not in http.get("/metrics").text

def test_it_is_described(http):
    schema = http.get("/openapi.json").json()
    assert {"/v1/audio/speech", "/tts", "/v1/voices", "/v1/voices/{voice_id}", "/v1/models", "/health", "/health/live", "/health/ready", "/metrics"} <= set(schema["paths"])
    assert schema["components"]["schemas"]["SpeechRequest"]["examples"]
    page = http.get("/docs").text
    assert "curl http://" in page and "<script" not in page and "POST /v1/audio/speech" in page

def test_schemathesis(served, tmp_path):
    "Generated calls: no 5xx. The full run has 2,000."
    from metavoice.measure.server_trials import fuzz_trial
    done = fuzz_trial(served[0].url, 150)
    assert done["calls"] >= 150 and not done["failed"], done


# a process

@contextmanager
def process(folder, *flags, **env):
    "`metavoice serve` as a process of its own; yields it, its address and its log."
    log = open(folder/"log", "a+b")
    with subprocess.Popen([*COMMAND, "--port", "0", "--threads", "1", "--voices", str(folder/"voices"), *flags], stdout=log, stderr=log, env=os.environ | dict(PYTHONPATH=str(ROOT)) | env) as one:
        def lines(): return [json.loads(o) for o in (folder/"log").read_bytes().splitlines() if o.startswith(b"{")]
        def started(): return one.poll() is not None or [o for o in lines() if o.get("event")=="ready" and o.get("pid")==one.pid]
        assert wait(started, 120) and one.poll() is None, (folder/"log").read_text()
        url = next(o["url"] for o in lines() if o.get("event")=="listening" and o.get("pid")==one.pid)
        try: yield one, url, lines
        finally:
            if one.poll() is None: one.kill()
            log.close()

def test_sigterm_finishes_what_runs_and_the_log_keeps_secrets(tmp_path):
    with process(tmp_path, METAVOICE_DENOISE="no") as (one, url, lines):
        with httpx.stream("POST", f"{url}/v1/audio/speech", json=dict(model="nano", input=LONG[:180], response_format="pcm"), timeout=60) as answer:
            parts = answer.iter_raw(); size = len(next(parts))
            one.send_signal(signal.SIGTERM)
            def shut():
                try: httpx.get(f"{url}/health", timeout=2)
                except httpx.HTTPError: return True
            assert wait(shut)
            size += sum(map(len, parts))
        assert size/2/24000 > 4 # all of it
        assert one.wait(20)==0
    told = (tmp_path/"log").read_text()
    assert "river" not in told and "Traceback" not in told
    request = next(o for o in lines() if o.get("event")=="request")
    assert request["status"]==200 and request["characters"]==180 and request["audio"] > 4 and request["first"] > 0

def test_a_denoised_sentence_with_a_seed_is_that_of_the_library(tts):
    from metavoice.serve.service import SpeechJob, SpeechService
    from metavoice.generate.options import sampling_options
    with SpeechService(tts) as studio:
        jobs = [SpeechJob(tts.pieces([SHORT], seed=5), sampling_options(tts.bundle), "codec", denoise=True, deterministic=deterministic) for deterministic in (True, False, False)]
        for job in jobs: studio.submit(job)
        alone, *shared = [torch.cat([o.samples for o in job.all()]) for job in jobs]
    assert torch.equal(alone, tts.synthesise(SHORT, seed=5).samples)
    for o in shared: torch.testing.assert_close(o, alone, atol=1e-5, rtol=0)

@pytest.mark.skipif(sys.platform!="linux", reason="looks into /proc")
def test_trials_say_when_nothing_came(tmp_path):
    import math
    from metavoice.measure.server_trials import load_test, percentile, resident_memory
    assert math.isnan(percentile([], .5)) and percentile([3, 1, 2], .99)==3
    found = load_test("http://127.0.0.1:9", 2, 4) # where nobody listens
    assert found["sentences"]==0 and found["failed"]=={"ConnectError": 4} and math.isnan(found["p99"])
    with subprocess.Popen([sys.executable, "-c", "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = bytearray(100_000_000); input()'], stdin=sys.stdin)"], stdin=subprocess.PIPE) as one:
        assert wait(lambda: resident_memory(one.pid) > 100), "children count, too"
        one.stdin.close()

def test_kill_9_under_load(tmp_path, reference):
    "Voices that were promised are there after a restart, whole, and nothing half."
    promised = []
    with process(tmp_path, "--no-denoise") as (one, url, _):
        def register(n):
            for i in range(1000):
                try: answer = httpx.post(f"{url}/v1/voices", data=dict(name=f"voice {n} {i}"), files=dict(file=("a.ogg", reference)), timeout=30)
                except httpx.HTTPError: return
                if answer.status_code==201: promised.append(answer.json()["id"])
        def speak():
            while True:
                try: httpx.post(f"{url}/v1/audio/speech", json=dict(model="nano", input=SHORT), timeout=30)
                except httpx.HTTPError: return
        with ThreadPoolExecutor(5) as pool:
            for n in range(3): pool.submit(register, n)
            for _ in range(2): pool.submit(speak)
            wait(lambda: len(promised) > 5)
            one.kill()
    assert len(promised) > 5
    with process(tmp_path, "--no-denoise") as (one, url, _):
        there = {o["id"] for o in httpx.get(f"{url}/v1/voices").json()["data"]}
        assert set(promised) <= there
        assert httpx.post(f"{url}/v1/audio/speech", json=dict(model="nano", input=SHORT, voice=promised[0]), timeout=60).status_code==200
    for path in (tmp_path/"voices").glob("voice_*"): Voice.load(path)

def test_no_other_handler_quotes_texts():
    code = """
import logging, sys
from metavoice.cli import quiet_libraries
from metavoice.serve import log_to
with quiet_libraries():
    log_to(sys.stderr)
    for name in ("metavoice.tts", "python_multipart", "somebody"): logging.getLogger(name).warning("%r came to no end", "my secret")
    try: raise ValueError("my secret")
    except ValueError: logging.getLogger("metavoice.engine").exception("speaking failed")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(ROOT)))
    assert run.returncode==0 and "secret" not in run.stderr+run.stdout, run.stderr
    assert [json.loads(o)["logger"] for o in run.stderr.splitlines()]==["metavoice.tts", "python_multipart", "somebody", "metavoice.engine"]

def test_it_refuses_to_start(tmp_path):
    def start(*flags, **env): return subprocess.run([*COMMAND, *flags], capture_output=True, text=True, timeout=100, env=os.environ | dict(PYTHONPATH=str(ROOT)) | env)
    for run,word in [(start("--port", "99999"), "65535"), (start(METAVOICE_ROWS="many"), "METAVOICE_ROWS"), (start("--model", str(tmp_path)), "metavoice: "), (start(METAVOICE_API_KEYS="short"), "16")]:
        assert run.returncode==2 and word in run.stderr and "Traceback" not in run.stderr, run.stderr


# containers

def test_compose_file_is_right():
    "By docker itself where it is; what can be read without it, always."
    import yaml
    compose = yaml.safe_load((ROOT/"docker-compose.yml").read_text())
    assert {"server", "ui", "finetune"} <= set(compose["services"])
    for name,service in compose["services"].items():
        assert all(str(port).startswith("127.0.0.1:") for port in service["ports"]), f"{name} is open to the network"
        assert "healthcheck" in service and any("/cache" in o for o in service["volumes"])
    docker = (ROOT/"Dockerfile").read_text()
    assert "USER metavoice" in docker and "HEALTHCHECK" in docker and "[serve,ui,finetune]" in docker
    assert compose["services"]["finetune"]["working_dir"] == "/runs" in [o.split(":")[1] for o in compose["services"]["finetune"]["volumes"]]

def test_docker_compose_config():
    for command in (["docker", "compose"], ["docker-compose"]):
        try: there = subprocess.run([*command, "version"], capture_output=True).returncode==0
        except FileNotFoundError: continue
        if there: break
    else: pytest.skip("docker compose isn't here")
    for profile in ([], ["--profile", "gpu"]):
        run = subprocess.run([*command, *profile, "-f", str(ROOT/"docker-compose.yml"), "config"], capture_output=True, text=True)
        assert run.returncode==0, run.stderr


# the README

def test_what_the_readme_says_runs(served, tts, tmp_path):
    import re, shutil
    section = re.search(r"^## As a server\n(.*?)^## ", (ROOT/"README.md").read_text(encoding="utf-8"), flags=re.M | re.S)[1]
    shell, python = ("\n".join(re.findall(rf"^```{kind}\n(.*?)^```", section, flags=re.M | re.S)).replace("http://127.0.0.1:8000", served[0].url) for kind in ("sh", "py"))
    commands = [o for o in shell.splitlines() if o.startswith("curl ")]
    assert len(commands) > 4 and "metavoice serve" in shell and "openai" in python
    soundfile.write(tmp_path/"me.wav", *soundfile.read(tts.bundle.voices["rms"]))
    exec(compile(python.replace("slept.wav", str(tmp_path/"slept.wav")), "README", "exec"), {})
    if shutil.which("curl"):
        for command in commands:
            run = subprocess.run([*"bash -c".split(), command.replace("curl", "curl -sSf", 1)], cwd=tmp_path, capture_output=True, text=True)
            assert run.returncode==0, (command, run.stderr)
        assert {"river.mp3", "book.wav", "dog.wav"} <= {o.name for o in tmp_path.iterdir()}
    for path in tmp_path.iterdir(): assert .3 < len(soundfile.read(path)[0])/soundfile.info(path).samplerate < 40, path

def test_the_page_s_calls_run(served, tts, tmp_path):
    import html, re, shutil
    if not shutil.which("curl"): pytest.skip("curl isn't here")
    soundfile.write(tmp_path/"me.wav", *soundfile.read(tts.bundle.voices["slt"]))
    page = html.unescape(served[1].get("/docs").text)
    calls = [o for block in re.findall(r"<pre>(.*?)</pre>", page, flags=re.S) for o in re.split(r"\n(?=curl)", block) if o]
    assert len(calls) >= 11
    for call in sorted(calls, key=lambda o: "DELETE" in o): # registered, then deleted
        run = subprocess.run(["bash", "-c", re.sub(r"http://127.0.0.1:\d+", served[0].url, call).replace("curl", "curl -sSf", 1)], cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode==0, (call, run.stderr)
