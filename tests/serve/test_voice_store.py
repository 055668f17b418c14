"Registered voices: over HTTP, and after a crash."

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch

from metavoice.audio.sound import Audio
from metavoice.generate.voice import Voice

SHORT = "The dog slept."


def upload(http, name, data):
    return http.post("/v1/voices", data=dict(name=name), files=dict(file=("a.ogg", data)))


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
