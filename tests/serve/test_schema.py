"Requests that don't match the schema, the OpenAPI description, and the documentation page."

import html
import re
import shutil
import subprocess

import pytest
import soundfile

from metavoice.serve.schema import SAMPLING_FIELDS


@pytest.mark.parametrize(
    "body, word",
    [
        (dict(input=""), "input"),
        (dict(input="   "), "text"),
        (dict(input="😀!"), "😀"),
        (dict(input="I smile 你.", strict=True), "你"),
        (dict(language="tlh"), "tlh"),
        (dict(lexicon={"a": "b"}), "lexicon"),
        (dict(spoken="maybe"), "spoken"),
        (dict(input="x " * 3000), "4096"),
        (dict(temperature=11), "temperature"),
        (dict(top_p=0), "top_p"),
        (dict(guidance=0.5), "guidance"),
        (dict(prompt_guidance=0.5), "prompt_guidance"),
        (dict(top_k=0), "top_k"),
        (dict(top_k=2.5), "top_k"),
        (dict(seed=-1), "seed"),
        (dict(seed=1.5), "seed"),
        (dict(pitch=1), "pitch"),
        (dict(voice=7), "voice"),
        (dict(takes=2), "takes"),
        (dict(temprature=1), "temperature"),
        (dict(volume_multiplier=2), "volume_multiplier"),
        (dict(lang_code="e"), "lang_code"),
        (dict(instructions=7), "instructions"),
        (dict.fromkeys(map(str, range(40)), 1), "40 unknown fields"),
        (dict(stream_format="x"), "stream_format"),
        (dict(input=7), "input"),
    ],
)
def test_invalid_fields_are_refused(http, assert_error, body, word):
    body = dict(model="nano", input="The dog slept.") | body
    assert_error(http.post("/v1/audio/speech", json=body), 400, word)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model":"nano","input":"\\ud800"}',
        b'{"model":"nano","input":"a","temperature":NaN}',
        b'{"model":"nano","input":"a","top_p":1e999}',
        b"\xff\xfe",
        b'{"model":"nano","input":"a","seed":' + b"9" * 5000 + b"}",
        b"[" * 90_000,
    ],
)
def test_invalid_json_is_refused(http, assert_error, content):
    headers = {"Content-Type": "application/json"}
    assert_error(http.post("/v1/audio/speech", content=content, headers=headers), 400)


def test_all_sampling_options_have_an_effect(http, tts, decode):
    "The options that were only reachable from Python before: same samples as the library."
    sampling = dict(top_k=20, prompt_guidance=1.5)
    body = dict(seed=5, response_format="wav", voice="af_bella", guidance=2, **sampling)
    heard, _ = decode(http.speak("Hello.", **body).content, dtype="float32")
    expected = tts.synthesise("Hello.", "af_bella", seed=5, guidance=2.0, **sampling).samples
    assert len(heard) == len(expected)
    assert abs(heard - expected.clamp(-1, 1).numpy()).max() < 1e-4


def test_how_a_text_is_read(serve, tmp_path):
    (tmp_path / "names.tsv").write_text("Siobhan\tShiv awn\n", encoding="utf-8")
    said = []

    def segments(*args):
        made = real(*args)
        said.append(" ".join(segment.text for segment in made))
        return made

    with serve(lexicon=str(tmp_path / "names.tsv")) as (server, client):
        real = server.service.tts.segments
        server.service.tts.segments = segments
        try:
            for fields in (dict(), dict(spoken=False), dict(language="en-GB")):
                assert client.speak("Siobhan paid $5 on 3/4/2026.", **fields).status_code == 200
        finally:
            del server.service.tts.segments
    assert said[0].startswith("Shiv awn paid five dollars on March") and "April" in said[2] and "five" not in said[1]


def test_the_api_is_described(http):
    schema = http.get("/openapi.json").json()
    assert {
        "/v1/audio/speech",
        "/tts",
        "/v1/voices",
        "/v1/voices/{voice_id}",
        "/v1/models",
        "/v1/audio/voices",
        "/v1/audio/models",
        "/health",
        "/health/live",
        "/health/ready",
        "/metrics",
    } <= set(schema["paths"])
    request = schema["components"]["schemas"]["SpeechRequest"]
    assert request["examples"]
    assert set(SAMPLING_FIELDS) <= set(request["properties"])
    page = http.get("/docs").text
    assert "curl http://" in page
    assert "<script" not in page
    assert "POST /v1/audio/speech" in page


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="curl isn't installed")
def test_the_examples_of_the_page_run(server, http, tts, tmp_path):
    soundfile.write(tmp_path / "me.wav", *soundfile.read(tts.bundle.voices["af_bella"]))
    page = html.unescape(http.get("/docs").text)
    blocks = re.findall(r"<pre>(.*?)</pre>", page, flags=re.S)
    calls = [call for block in blocks for call in re.split(r"\n(?=curl)", block) if call]
    assert len(calls) >= 11
    for call in sorted(calls, key=lambda call: "DELETE" in call):  # a voice is registered before it is deleted
        command = re.sub(r"http://127.0.0.1:\d+", server.url, call).replace("curl", "curl -sSf", 1)
        run = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, (call, run.stderr)
