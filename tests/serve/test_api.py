"Speech over HTTP: OpenAI's client, and the form of MetaVoice's first server."

import base64
import json
import time

import openai
import pytest
import soundfile
import torch

from metavoice.audio.encode import to_int16

SHORT = "The dog slept."
LONG = " ".join(
    ["The old man walked to the river.", "Where is the red book?", "The dog and the cat slept quietly."] * 8
)


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served[0].url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("format", ["wav", "mp3", "opus", "flac"])
def test_openai_client_in_each_format(client, tmp_path, format):
    speech = client.audio.speech.create(model="nano", voice="af_heart", input=SHORT, response_format=format)
    speech.write_to_file(tmp_path / "speech")
    info = soundfile.info(tmp_path / "speech")
    assert info.samplerate == 48000 and 0.3 < info.duration < 8 or format == "wav"
    samples, rate = soundfile.read(tmp_path / "speech")
    assert 0.3 < len(samples) / rate < 8
    assert abs(samples).max() > 0.05


def test_openai_client_streams_pcm(client):
    create, times, size = client.audio.speech.with_streaming_response.create, [], 0
    with create(model="nano", voice="af_bella", input=LONG[:200], response_format="pcm") as response:
        began = time.perf_counter()
        for part in response.iter_bytes():
            times.append(time.perf_counter() - began)
            size += len(part)
    assert len(times) > 3
    assert times[0] < times[-1] / 2, times
    assert 1 < size / 2 / 24000 < 30


def test_openai_client_receives_events(client):
    create = client.audio.speech.with_streaming_response.create
    with create(model="nano", voice="af_heart", input=SHORT, stream_format="sse", response_format="pcm") as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line]
    assert [event["type"] for event in events[-2:]] == ["speech.audio.delta", "speech.audio.done"]
    assert events[-1]["usage"]["input_tokens"] > 1


def test_speed_of_openai_client_is_the_librarys(client, tts, decode):
    fast = client.audio.speech.create(
        model="nano", voice="af_heart", input=SHORT, speed=1.5, response_format="wav", extra_body=dict(seed=4)
    )
    heard, _ = decode(fast.content, dtype="int16")
    expected = to_int16(tts.synthesise(SHORT, "af_heart", seed=4, speed=1.5).samples)
    assert torch.equal(torch.from_numpy(heard), expected)


@pytest.mark.parametrize("seed", [None, 4])
def test_events_with_the_times_of_words(http, seed):
    body = dict(stream_format="sse", timestamp_granularities=["word"], speed=1.25, seed=seed)
    with http.stream_speech("It cost $5. Where is it?", **body) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line]
    size = sum(len(base64.b64decode(event["audio"])) for event in events if event["type"] == "speech.audio.delta")
    words = [word for event in events if event["type"] == "speech.audio.words" for word in event["words"]]
    assert [word["word"] for word in words] == "It cost $5. Where is it?".split()
    times = [time for word in words for time in (word["start"], word["end"])]
    assert times == sorted(times) and size / 48000 - 0.6 < times[-1] <= size / 48000
    assert events[0]["type"] == "speech.audio.delta" and events[-1]["type"] == "speech.audio.done"


def test_the_times_of_words_need_events(http, assert_error):
    assert_error(http.speak(timestamp_granularities=["word"]), 400, "stream_format", "sse")
    assert_error(http.speak(timestamp_granularities=["segment"]), 400, "word")


def test_openai_client_lists_models(client):
    assert [model.id for model in client.models.list()] == ["nano"]
    assert client.models.retrieve("nano").id == "nano"


@pytest.mark.parametrize(
    "body, error, message",
    [
        (dict(model="whisper-1"), openai.NotFoundError, "no model 'whisper-1'; this server has 'nano'"),
        (dict(speed=2.5), openai.BadRequestError, "speed is 2.5; use a number from 0.5 to 2"),
        (dict(response_format="wma"), openai.BadRequestError, "response_format"),
        (dict(voice="nobody"), openai.NotFoundError, "no voice 'nobody'; use af_heart, .*bm_george"),
    ],
)
def test_openai_client_raises_its_errors(client, body, error, message):
    with pytest.raises(error, match=message):
        client.audio.speech.create(**dict(model="nano", voice="af_heart", input=SHORT) | body)


def test_a_seed_gives_the_samples_of_the_library(tts, http, decode):
    heard, _ = decode(http.speak(seed=5, response_format="wav", voice="af_bella").content, dtype="int16")
    expected = to_int16(tts.synthesise(SHORT, "af_bella", seed=5).samples)
    assert torch.equal(torch.from_numpy(heard), expected)


def test_the_form_of_the_first_server(http, reference, decode):
    audio = dict(audiodata=("a.ogg", reference))
    forms = [
        (dict(text=SHORT, guidance="3.0", top_p="0.95"), None),
        (dict(text=SHORT, speaker_ref_path="af_bella"), None),
        (dict(text=SHORT, speaker_ref_path=""), audio),
    ]
    for form, files in forms:
        response = http.post("/tts", data=form, files=files)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "audio/wav"
        samples, rate = decode(response.content)
        assert rate == 48000
        assert 0.3 < len(samples) / rate < 8


def test_invalid_forms_are_refused(http, reference, assert_error):
    assert_error(http.post("/tts", data=dict(text=SHORT, guidance="0.2")), 400, "guidance")
    both = dict(text=SHORT, speaker_ref_path="af_bella")
    response = http.post("/tts", data=both, files=dict(audiodata=("a.ogg", reference)))
    assert_error(response, 400, "both")
    assert_error(http.post("/tts", data={}), 400, "text")
