"Registered voices at an address that several servers share, and one that doesn't answer."

import threading

import fsspec
import httpx
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from metavoice.core.errors import OptionError
from metavoice.core.storage import StorageError
from metavoice.serve.api import SpeechAPI
from metavoice.serve.config import ServerConfig


def upload(http, name, data):
    return http.post("/v1/voices", data=dict(name=name), files=dict(file=("a.ogg", data)))


def test_two_servers_share_an_address(serve, reference, assert_error):
    address = "memory://shared/voices"
    with serve(voices=address) as (_, one), serve(voices=address) as (_, two):
        key = upload(one, "Ada", reference).json()["id"]
        assert two.speak(voice="ada").status_code == 200
        assert "metavoice_voices 1.0" in two.get("/metrics").text
        assert two.delete(f"/v1/voices/{key}").status_code == 200
        assert_error(one.speak(voice="Ada"), 404)
        assert "metavoice_voices 0.0" in one.get("/metrics").text


@pytest.fixture
def stuck():
    "An event that ends the waiting of a file system whose calls don't answer; `stuck.calls` starts the waiting."

    class Stuck(MemoryFileSystem):
        protocol = ("stuck", "memory")

        def ls(self, *args, **kwargs):
            if waiting.is_set():
                released.wait()
            return super().ls(*args, **kwargs)

        def info(self, *args, **kwargs):
            if waiting.is_set():
                released.wait()
            return super().info(*args, **kwargs)

    waiting, released = threading.Event(), threading.Event()
    fsspec.register_implementation("stuck", Stuck, clobber=True)
    yield waiting
    released.set()


def test_a_storage_that_does_not_answer_holds_up_nothing_else(serve, reference, assert_error, stuck):
    with serve(voices="stuck://me:secret@host/voices") as (server, http):
        assert upload(http, "Ada", reference).status_code == 201
        assert "metavoice_voices 1.0" in http.get("/metrics").text
        server.service.store_calls.seconds = 1.0
        stuck.set()
        answers = []

        def ask():
            with httpx.Client(base_url=server.url, timeout=60) as own:
                body = dict(model="nano", input="The dog slept.", voice="Ada")
                answers.append(own.post("/v1/audio/speech", json=body))

        threads = [threading.Thread(target=ask) for _ in range(20)]  # more than the calls at a time
        for thread in threads:
            thread.start()
        for path in ("/health", "/health/live", "/health/ready", "/metrics", "/v1/models"):
            assert http.get(path, timeout=20).status_code == 200
        assert http.speak(voice="af_heart*0.7+bf_emma*0.3").status_code == 200
        for thread in threads:
            thread.join()
        for answer in answers:
            assert_error(answer, 503, "the registered voices can't be reached")
            assert "secret" not in answer.text and answer.headers["retry-after"] == "15"
        assert_error(http.get("/v1/voices"), 503)
        assert "metavoice_voices 1.0" in http.get("/metrics", timeout=20).text


def test_an_address_that_cannot_be_used_stops_the_server_at_its_start(tts, stuck):
    with pytest.raises(OptionError, match="fsspec doesn't know nothing://"):
        SpeechAPI(ServerConfig(voices="nothing://voices"), tts)

    class Away(MemoryFileSystem):
        protocol = "away"

        def ls(self, *args, **kwargs):
            raise ConnectionRefusedError(111, "key:secret")

    fsspec.register_implementation("away", Away, clobber=True)
    with pytest.raises(StorageError, match="can't list the voices at away://…@host/voices: ConnectionRefusedError"):
        SpeechAPI(ServerConfig(voices="away://me:secret@host/voices"), tts)
