"Requests as the clients of other projects send them, the names of OpenAI's voices and models, and paths without /v1."

import asyncio
import json
import logging

import httpx
import openai
import pytest
import torch
from tiny import write_tiny_bundle

from metavoice.audio.sound import load_audio
from metavoice.generate.tts import TTS
from metavoice.generate.voice import Voice
from metavoice.serve.app import start_server
from metavoice.serve.config import ServerConfig
from metavoice.serve.voice_store import OPENAI_MODELS, OPENAI_VOICES

TEXT = "The dog slept."

# The fields that each client sends; the path is what it appends to the address in its settings.
REQUESTS = {
    "open-webui": ("/v1/audio/speech", dict(input=TEXT, voice="alloy", model="tts-1")),
    "open-webui, a voice of the list": ("/v1/audio/speech", dict(input=TEXT, voice="bf_emma", model="nano")),
    "open-webui, with parameters": (
        "/v1/audio/speech",
        dict(input=TEXT, voice="nova", model="tts-1-hd", response_format="opus", speed=1.0, user="somebody"),
    ),
    "SillyTavern": (
        "/v1/audio/speech",
        dict(input=TEXT, response_format="mp3", voice="shimmer", speed=1, model="tts-1"),
    ),
    "SillyTavern, OpenAI": (
        "/v1/audio/speech",
        dict(input=TEXT, response_format="mp3", voice="ballad", speed=1, model="gpt-4o-mini-tts", instructions="Low."),
    ),
    "Home Assistant, OpenAI": (
        "/v1/audio/speech",
        dict(input=TEXT, voice="marin", model="gpt-4o-mini-tts", instructions="None", speed=1.0, response_format="aac"),
    ),
    "Home Assistant, OpenAI, a prompt": (
        "/v1/audio/speech",
        dict(input=TEXT, voice="cedar", model="gpt-4o-mini-tts", instructions="Be calm. " * 999, speed=1.0),
    ),
    "Home Assistant, openai_tts": (
        "/v1/audio/speech",
        dict(model="tts-1", input=TEXT, voice="onyx", response_format="wav", speed=1.0),
    ),
    "LibreChat": ("/v1/audio/speech", dict(input=TEXT, model="tts-1", voice="alloy")),
    "LibreChat, a backend": ("/v1/audio/speech", dict(input=TEXT, model="nano", voice="af_bella", backend="any")),
    "LibreChat, no voice": ("/v1/audio/speech", dict(input=TEXT, model="tts-1-hd")),
    "AnythingLLM": ("/v1/audio/speech", dict(model="tts-1", voice="alloy", input=TEXT)),
    "LiveKit": (
        "/v1/audio/speech",
        dict(input=TEXT, model="gpt-4o-mini-tts", voice="ash", response_format="mp3", speed=1.0),
    ),
    "Pipecat": (
        "/v1/audio/speech",
        dict(input=TEXT, model="gpt-4o-mini-tts", voice="alloy", response_format="pcm", instructions="Calmly."),
    ),
    "n8n": (
        "/v1/audio/speech",
        dict(model="tts-1", input=TEXT, voice="fable", response_format="mp3", speed=1),
    ),
    "Kokoro-FastAPI": (
        "/v1/audio/speech",
        dict(
            model="kokoro", input=TEXT, voice="af_heart", response_format="mp3", download_format="mp3", speed=1.0,
            stream=True, return_download_link=False, lang_code="a", volume_multiplier=1.0,
            normalization_options=dict(normalize=True, unit_normalization=False),
        ),
    ),
    "OpenAI's newest": ("/v1/audio/speech", dict(model="tts-1", input=TEXT, voice=dict(id="verse"))),
    "nulls": (
        "/v1/audio/speech",
        dict(
            model=None, input=TEXT, voice=None, response_format=None, stream_format=None, speed=None, seed=None,
            instructions=None, guidance=None, lang_code=None, spoken=None, anything=None, pitch=None,
        ),
    ),
    "no /v1": ("/audio/speech", dict(input=TEXT, voice="coral", model="tts-1")),
}


@pytest.mark.parametrize("client", REQUESTS)
def test_requests_of_clients(http, client):
    path, body = REQUESTS[client]
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    if body.get("response_format") == "pcm":
        assert 0.3 < len(answer.content) / 2 / 24_000 < 8
    else:
        assert 0.3 < load_audio(answer.content).duration < 8
    types = dict(aac="audio/aac", wav="audio/wav", opus="audio/ogg", pcm="audio/pcm")
    assert answer.headers["content-type"] == types.get(body.get("response_format"), "audio/mpeg")


def test_what_clients_list(http):
    "open-webui reads `voices` and `models`, each with an id; `GET` works with and without /v1."
    for prefix in ("/v1", ""):
        voices = http.get(f"{prefix}/audio/voices").json()["voices"]
        assert {voice["id"]: voice["name"] for voice in voices}["af_heart"] == "af_heart"
        assert [model["id"] for model in http.get(f"{prefix}/audio/models").json()["models"]] == ["nano"]
        assert [model["id"] for model in http.get(f"{prefix}/models").json()["data"]] == ["nano"]
        assert http.get(f"{prefix}/models/tts-1").json()["id"] == "nano"
        assert "af_heart" in {voice["id"] for voice in http.get(f"{prefix}/voices").json()["data"]}
        assert http.head(f"{prefix}/audio/voices").status_code == 200


def test_paths_without_v1_need_a_key(serve, assert_error):
    with serve(api_keys=("a-key-of-16-letters",)) as (_, http):
        for path in ("/audio/voices", "/audio/models", "/models", "/voices", "/v1/audio/voices"):
            assert_error(http.get(path), 401, "API key")
        assert_error(http.post("/audio/speech", json=dict(input=TEXT)), 401, "API key")


def test_every_name_of_openai_is_another_voice_s(server):
    "Women's names get women's voices, and men's men's; each voice of nano has a name."
    catalogue = server.service.catalogue
    found = {name: catalogue.find(name).name for name in OPENAI_VOICES}
    women = {name for name, voice in found.items() if voice[1] == "f"}
    assert women == {"alloy", "coral", "marin", "nova", "sage", "shimmer"}
    assert set(found.values()) == set(server.service.tts.bundle.voices)
    assert catalogue.find("NOVA").name == found["nova"]


def test_a_table_of_names(serve, assert_error, reference):
    "An entry comes before a default; a registered voice of that name comes before the default too."
    names = ("alloy=bm_george", "narrator=Ada Lovelace", "lost=nobody")
    with serve(voice_names=names, model_names=("my-tts",)) as (server, http):
        for name in ("Ada Lovelace", "nova"):
            assert http.post("/v1/voices", data=dict(name=name), files=dict(file=("a.ogg", reference))).is_success
        find = server.service.catalogue.find
        assert [find(name).name for name in ("alloy", "Narrator", "nova", "echo")] == [
            "bm_george", "Ada Lovelace", "nova", "am_michael"
        ]
        assert http.speak(model="my-tts", voice="narrator").status_code == 200
        assert_error(http.speak(voice="lost"), 404, "no voice 'nobody'", "af_heart", "Ada Lovelace")
        assert_error(http.speak(model="other"), 404, "no model 'other'", "'nano'", "my-tts")


def test_a_model_with_registered_voices_only(tmp_path, monkeypatch, assert_error):
    "OpenAI's names and no name at all are the voice that was registered first; without one, the error says what to do."
    tts = TTS.from_pretrained(write_tiny_bundle(tmp_path / "tiny"), "cpu")
    monkeypatch.setattr(type(tts.bundle), "voices", property(lambda self: {}))
    server = start_server(ServerConfig(port=0, threads=1, denoise=False, voices=str(tmp_path / "voices")), tts)
    try:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            body = dict(model="tts-1", input=TEXT, response_format="pcm")
            for voice in ("alloy", None, "nobody"):
                assert_error(http.post("/v1/audio/speech", json=body | dict(voice=voice)), 404, "POST /v1/voices")
            server.service.store.add("me", Voice(torch.nn.functional.normalize(torch.ones(256), dim=0)))
            for voice in ("alloy", "onyx", None, "me"):
                answer = http.post("/v1/audio/speech", json=body | dict(voice=voice))
                assert answer.status_code in (200, 422), answer.text  # random weights may give no speech
            assert_error(http.post("/v1/audio/speech", json=body | dict(voice="nobody")), 404, "use me")
    finally:
        server.stop()
        server.thread.join(60)


def test_many_voices_are_not_all_named(serve, assert_error):
    with serve() as (server, http):
        for n in range(40):
            server.service.store.add(f"voice {n}", Voice(torch.randn(256)))
        assert_error(http.speak(voice="nobody"), 404, "voice 0", "or 16 more, which GET /v1/voices lists")


def test_ignored_fields_are_logged_at_debug(http, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("metavoice"), "propagate", True)
    with caplog.at_level(logging.DEBUG, "metavoice.serve.monitoring"):
        assert http.speak(stream=False, user="me", instructions="Slowly.").status_code == 200
    (record,) = [o for o in caplog.records if "are ignored" in o.msg]
    assert (record.levelname, record.args) == ("DEBUG", ("stream, user, instructions",))


def test_kokoro_s_language_is_the_accent(server, http):
    said, real = [], server.service.split_text

    def split(text, voice, seed, options):
        said.append(options.accent)
        return real(text, voice, seed, options)

    server.service.split_text = split
    try:
        for fields in (dict(), dict(lang_code="b"), dict(lang_code="b", accent="american")):
            assert http.speak(**fields).status_code == 200
    finally:
        del server.service.split_text
    assert said == [None, "british", "american"]


@pytest.mark.slow
def test_openai_package_against_a_process(tmp_path, serve_process):
    "Models and voices by OpenAI's names, each format, async, streamed, and as events."
    with serve_process(tmp_path, METAVOICE_DENOISE="no") as (_, url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        without = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        for format in ("mp3", "opus", "aac", "flac", "wav"):
            voice, model = list(OPENAI_VOICES)[len(format)], OPENAI_MODELS[len(format) % 3]
            speech = client.audio.speech.create(
                model=model, voice=voice, input=TEXT, response_format=format, instructions="Calmly.", speed=1.0
            )
            assert 0.3 < load_audio(speech.content).duration < 8
        assert without.models.list().data[0].id == "nano"
        speech = without.audio.speech.create(model="tts-1", voice="alloy", input=TEXT)
        assert 0.3 < load_audio(speech.content).duration < 8
        create = client.audio.speech.with_streaming_response.create
        with create(model="tts-1", voice="echo", input=TEXT, response_format="pcm", stream_format="sse") as response:
            events = [json.loads(line[6:])["type"] for line in response.iter_lines() if line]
        assert events[-1] == "speech.audio.done"
        assert asyncio.run(speak_async(f"{url}/v1")) > 10_000
        with pytest.raises(openai.NotFoundError, match="use af_heart"):
            client.audio.speech.create(model="tts-1", voice="nobody", input=TEXT)


async def speak_async(url):
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        create, size = client.audio.speech.with_streaming_response.create, 0
        async with create(model="gpt-4o-mini-tts", voice="sage", input=TEXT, response_format="pcm") as response:
            async for part in response.iter_bytes():
                size += len(part)
    return size
