"A server with a model that reads phonemes: the accent of a request, and requests that share a batch."
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny import write_tiny_bundle

from metavoice.generate.tts import TTS


@pytest.fixture(scope="module")
def tts(tmp_path_factory):
    pytest.importorskip("hibari")
    return TTS.from_pretrained(write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny", phonemes=True), "cpu")


@pytest.fixture
def http(serve):
    with serve() as (_, client):
        yield client


def speak(http, **body):
    return http.speak("The dance.", **dict(model="tiny", seed=3, response_format="wav") | body)


def test_the_accent_of_a_request(http):
    own, british, american = (speak(http, **body) for body in ({}, dict(accent="british"), dict(accent="american")))
    assert own.status_code == british.status_code == american.status_code == 200
    assert own.content == british.content != american.content  # the voice is British
    wrong = speak(http, accent="welsh")
    assert wrong.status_code == 400 and "accent" in wrong.text and "british" in wrong.text


def test_requests_of_both_accents_share_a_batch(http):
    bodies = [dict(accent=accent, seed=seed) for seed in range(3) for accent in ("american", "british")]
    alone = [speak(http, **body).content for body in bodies]
    with ThreadPoolExecutor(6) as pool:
        together = [made.content for made in pool.map(lambda body: speak(http, **body), bodies)]
    assert together == alone
