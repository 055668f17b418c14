"Recordings from clients: broken uploads, paths and URLs."

import os
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import media
import pytest
import torch

import metavoice.serve.api as api
from metavoice.audio.sound import Audio, load_audio
from metavoice.core.fetch import fetch_recording
from metavoice.measure.server_trials import make_broken_uploads, resident_memory

SHORT = "The dog slept."


@pytest.mark.parametrize("name, end", [("a.ogg", 5000), ("a.ogg", 0), ("a", 3)])
def test_a_broken_upload_is_refused(http, reference, assert_error, name, end):
    files = dict(file=(name, reference[:end]))
    assert_error(http.post("/v1/voices", data=dict(name="x"), files=files), 400)


@pytest.mark.parametrize("name, keep", [("a.wav", 1), ("a", 1), ("a.ogg", 0.8), ("me.m4a", 1)])
def test_an_upload_is_read_by_its_content_as_far_as_it_goes(http, reference, name, keep):
    data = reference[: int(keep * len(reference))]
    if name == "me.m4a":
        pytest.importorskip("av", reason='needs pip install "metavoice[media]"')
        samples = load_audio(reference, media.RATE).samples.numpy()
        data = media.write_media(samples, "ipod", "aac")
    response = http.post("/v1/voices", data=dict(name=f"read {name} {keep}"), files=dict(file=(name, data)))
    assert response.status_code == 201, response.text
    assert http.delete(f"/v1/voices/{response.json()['id']}").status_code == 200


@pytest.mark.slow
def test_broken_uploads_are_refused_in_bounded_memory(http, reference):
    "Every broken upload gets a 4xx; the full trial sends 500."
    wav = Audio(torch.zeros(16000), 16000).to_bytes("wav")
    http.post("/v1/voices", data=dict(name="x"), files=dict(file=("a.wav", wav)))  # warm up
    before = resident_memory(os.getpid())
    for kind, name, data in make_broken_uploads(60, reference):
        response = http.post("/v1/voices", data=dict(name="x"), files=dict(file=(name, data)))
        assert 400 <= response.status_code < 500, (kind, response.text)
    assert resident_memory(os.getpid()) < before + 150
    assert http.get("/v1/voices").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../../../etc/passwd",
        "metavoice/nano/voices/af_heart.ogg",
        "file:///etc/passwd",
        "~/.ssh/id_rsa",
        "af_heart.ogg",
        "a\0b",
        "",
        "//host/share",
    ],
)
def test_a_path_never_names_a_voice(http, tts, path):
    if not path:
        assert http.speak(voice="").status_code in (400, 404)
        return
    for name in (path, str(tts.bundle.voices["af_heart"])):
        response = http.post("/tts", data=dict(text=SHORT, speaker_ref_path=name))
        assert response.status_code in (400, 404), (name, response.text)
        if "\0" not in name:
            assert http.speak(voice=name).status_code in (400, 404)


def test_urls_are_refused_by_default(http, assert_error):
    for url in ("http://127.0.0.1/a.wav", "https://example.com/a.wav", "ftp://example.com/a.wav"):
        response = http.post("/tts", data=dict(text=SHORT, speaker_ref_path=url))
        assert_error(response, 400, "fetches no references")


@contextmanager
def run_web_server(reference):
    "Serve a recording at every path except one that redirects; yields the port."

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            redirects = self.path == "/v/out.ogg"
            self.send_response(302 if redirects else 200)
            if redirects:
                self.send_header("Location", "/metadata")
            self.end_headers()
            self.wfile.write(reference)

        def log_message(self, *args):
            pass

    web_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web_server.serve_forever, daemon=True).start()
    try:
        yield web_server.server_port
    finally:
        web_server.shutdown()
        web_server.server_close()


def test_allowed_urls_are_fetched_unless_private(serve, reference, monkeypatch, assert_error):
    with run_web_server(reference) as port:
        base, local = f"http://voices.example.com:{port}/v/", f"http://127.0.0.1:{port}/"
        with serve(fetch_from=(base, local)) as (_, http):

            def speak(url):
                return http.post("/tts", data=dict(text=SHORT, speaker_ref_path=url))

            assert_error(speak(local + "v/a.ogg"), 400, "isn't public")  # allowed, but private
            assert_error(speak("http://10.0.0.1/a.ogg"), 400, "none of the URLs")
            fetch = partial(fetch_recording, resolve=lambda host, port: "127.0.0.1")
            monkeypatch.setattr(api, "fetch_recording", fetch)
            assert speak(base + "a.ogg").status_code == 200
            assert_error(speak(base + "out.ogg"), 400, "none of the URLs")
