"Registered voices: over HTTP, and after a crash."

import hashlib
import io
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch

from metavoice.audio.encode import read_provenance
from metavoice.audio.sound import Audio
from metavoice.bundle.voice_store import user_voices
from metavoice.core.errors import OutputError
from metavoice.generate.voice import Voice
from metavoice.serve.api import SpeechAPI
from metavoice.serve.config import ServerConfig

SHORT = "The dog slept."


def upload(http, name, data, **form):
    return http.post("/v1/voices", data=dict(name=name, **form), files=dict(file=("a.ogg", data)))


def test_a_voice_is_registered_used_and_deleted(tts, http, server, reference, assert_error):
    added = upload(http, "Ada Lovelace", reference)
    assert added.status_code == 201, added.text
    assert added.json()["owned_by"] == "user"
    key, folder = added.json()["id"], server.service.store.folder
    assert upload(http, "Ada Lovelace", reference).json() == added.json()  # a repeated call
    names = {voice["name"] for voice in http.get("/v1/voices").json()["data"]}
    assert {"af_heart", "bm_george", "Ada Lovelace"} <= names
    files = list(folder.iterdir())
    assert [path.name for path in files] == [f"{key}.safetensors"]
    assert torch.allclose(Voice.load(files[0]).embedding, tts.voice("af_heart").embedding)
    for voice in (key, "ada lovelace", dict(id=key)):
        assert http.speak(voice=voice).status_code == 200
    assert http.delete(f"/v1/voices/{key}").json() == dict(id=key, object="voice", deleted=True)
    assert not list(folder.iterdir())
    assert_error(http.speak(voice=key), 404)


def test_faults_of_the_recording_are_returned(tts, http, decode):
    samples, rate = decode(Path(tts.bundle.voices["af_heart"]).read_bytes(), dtype="float32")
    quiet = Audio(torch.from_numpy(10**-1.6 * samples), rate).to_bytes("flac")
    added = upload(http, "Quiet", quiet).json()
    (warning,) = added["warnings"]
    assert "very quiet" in warning and "closer to the microphone" in warning
    listed = {voice["name"]: voice for voice in http.get("/v1/voices").json()["data"]}
    assert listed["Quiet"]["warnings"] == [warning] and listed["af_heart"]["warnings"] == []
    assert upload(http, "Plain", Path(tts.bundle.voices["af_heart"]).read_bytes()).json()["warnings"] == []
    for name in ("Quiet", "Plain"):
        assert http.delete(f"/v1/voices/{name}").status_code == 200


def test_invalid_and_taken_names_are_refused(tts, http, server, reference, assert_error):
    key, other = upload(http, "Ada Lovelace", reference).json()["id"], Path(tts.bundle.voices["af_bella"]).read_bytes()
    assert_error(upload(http, "ada lovelace", other), 409, "another voice")
    assert_error(upload(http, "af_heart", other), 409, "of the model")
    for name in ("../evil", "a/b", ".", "x" * 65, "..\\evil", "a\nb"):
        assert_error(upload(http, name, other), 400)
    assert_error(http.delete("/v1/voices/af_heart"), 409)
    assert_error(http.delete("/v1/voices/nobody"), 404)
    for path in ("..%2f..%2fetc%2fpasswd", f"..%2f{key}", f"{key}.safetensors"):
        assert http.delete(f"/v1/voices/{path}").status_code == 404
    assert http.delete(f"/v1/voices/{key}").status_code == 200
    assert not list(server.service.store.folder.iterdir())


def test_consent_is_kept_and_can_be_required(http, serve, reference, assert_error):
    assert_error(upload(http, "Ada", reference, consent="two\nlines"), 400, "on one line")
    assert_error(upload(http, "Ada", reference, consent="x" * 501), 400, "with 501 characters")
    assert upload(http, "Ada", reference).json()["consent"] is None
    added = upload(http, "Ada", reference, consent="I, Ada, agreed on 2026-11-01").json()  # it may come later
    assert added["consent"] == "I, Ada, agreed on 2026-11-01" and added["accent"] == "american"
    assert added["source"] == f"sha256:{hashlib.sha256(reference).hexdigest()}"
    assert upload(http, "Ada", reference).json() == added
    listed = {voice["name"]: voice for voice in http.get("/v1/voices").json()["data"]}
    assert listed["Ada"] == added and listed["bf_emma"]["accent"] == "british" and not listed["bf_emma"]["consent"]
    assert http.delete("/v1/voices/Ada").status_code == 200
    with serve(require_consent=True) as (_, strict):
        for form in ({}, dict(consent="")):
            assert_error(upload(strict, "Ada", reference, **form), 400, "without its speaker's consent")
        assert upload(strict, "Ada", reference, consent="I agreed.").status_code == 201


def test_blends_of_the_models_and_registered_voices(tts, http, server, reference, assert_error, decode):
    key = upload(http, "Ada Lovelace", reference).json()["id"]
    body = dict(seed=5, response_format="wav")
    blended = http.speak(voice="Ada Lovelace*0.5+am_michael*0.5", **body).content
    heard, _ = decode(blended, dtype="int16")
    again, _ = decode(http.speak(voice=dict(id=f"{key}*2+am_michael*2"), **body).content, dtype="int16")
    assert (again == heard).all()
    form = http.post("/tts", data=dict(text=SHORT, speaker_ref_path=f"{key}+am_michael"))
    assert form.status_code == 200 and form.content[:4] == b"RIFF"
    for voice, status, words in (
        ("af_heart*-1+am_michael", 400, "use a number above 0"),
        ("af_heart*nan", 400, "use a number above 0"),
        ("+".join(["af_heart"] * 9), 400, "use up to 8"),
        ("+" * 90_000, 400, "use up to 8"),
        ("af_heart+nobody", 404, "no voice 'nobody'"),
        ("af_heart+../../etc/passwd", 404, "no voice '../../etc/passwd'"),
    ):
        assert_error(http.speak(voice=voice), status, words)
    assert http.delete(f"/v1/voices/{key}").status_code == 200
    assert_error(http.speak(voice="Ada Lovelace+am_michael"), 404, "no voice 'Ada Lovelace'")


def test_blends_take_no_memory(server):
    voices = server.service.catalogue
    voices.find("af_heart*7+bf_emma")
    tracemalloc.start()
    try:
        for n in range(300):
            voices.find(f"af_heart*{n + 1}+bf_emma*3")
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000  # an embedding takes 1 kB


@pytest.mark.parametrize("format", ["mp3", "opus", "flac", "wav"])
def test_served_speech_carries_its_origin(http, format):
    sound = http.speak(voice="af_heart*0.5+bm_george*0.5", response_format=format).content
    found = read_provenance(io.BytesIO(sound))
    assert (found.model, found.voice) == ("nano", "af_heart*0.5+bm_george*0.5")


def test_without_a_folder_of_its_own_a_server_has_the_users_voices(tts, tmp_path, monkeypatch):
    monkeypatch.setenv("METAVOICE_VOICES", str(tmp_path / "mine"))
    user_voices().add("Grandmother", tts.voice("bf_emma"))
    api = SpeechAPI(ServerConfig(), tts)
    api.model_voices["af_heart"] = tts.voice("af_heart")
    assert api.catalogue.find("grandmother+af_heart").origin.parts[0].name == "Grandmother"
    api.close()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't create the folder for voices"):
        SpeechAPI(ServerConfig(voices=str(tmp_path / "file")), tts)


@pytest.mark.slow
def test_registered_voices_survive_a_killed_process(tmp_path, serve_process, wait_until, reference):
    registered = []

    def register(url, worker):
        for n in range(1000):
            form, files = dict(name=f"voice {worker} {n}"), dict(file=("a.ogg", reference))
            try:
                response = httpx.post(f"{url}/v1/voices", data=form, files=files, timeout=300)
            except httpx.HTTPError:
                return
            if response.status_code == 201:
                registered.append(response.json()["id"])

    def speak(url):
        while True:
            try:
                httpx.post(f"{url}/v1/audio/speech", json=dict(model="nano", input=SHORT), timeout=300)
            except httpx.HTTPError:
                return

    with serve_process(tmp_path, "--no-denoise") as (process, url, _), ThreadPoolExecutor(5) as pool:
        for worker in range(3):
            pool.submit(register, url, worker)
        for _ in range(2):
            pool.submit(speak, url)
        wait_until(lambda: len(registered) > 5)
        process.kill()
    assert len(registered) > 5
    with serve_process(tmp_path, "--no-denoise") as (_, url, _):
        found = {voice["id"] for voice in httpx.get(f"{url}/v1/voices").json()["data"]}
        assert set(registered) <= found
        body = dict(model="nano", input=SHORT, voice=registered[0])
        assert httpx.post(f"{url}/v1/audio/speech", json=body, timeout=600).status_code == 200
    for path in (tmp_path / "voices").glob("voice_*"):
        Voice.load(path)
