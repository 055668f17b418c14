"The relay of a front process: what it sends when replicas end, clients leave, and limits are reached."
import asyncio
import pickle

import pytest

pytest.importorskip("fastapi", reason='needs pip install "metavoice[serve]"')
import httpx  # noqa: E402
from fastapi import FastAPI, Request  # noqa: E402
from fastapi.responses import StreamingResponse  # noqa: E402

from metavoice.serve import relay  # noqa: E402
from metavoice.serve.app import add_checks, add_error_handlers  # noqa: E402
from metavoice.serve.config import ServerConfig  # noqa: E402
from metavoice.serve.job import Repeat  # noqa: E402
from metavoice.serve.relay import Relay, ReplicaEnded, answer_request  # noqa: E402
from metavoice.serve.service import QueueFull  # noqa: E402
from metavoice.serve.state import ServerState  # noqa: E402

PARTS = 20
app = FastAPI()


@app.post("/parts")
async def parts(request: Request):
    "Parts of which each has its number, the body's length, and the seed."
    length = len(await request.body())
    request.state.about["audio"] = 2.5

    async def generate():
        for n in range(PARTS):
            await asyncio.sleep(0)
            yield f"{n}/{length}/{request.state.repeat.seed};".encode()

    return StreamingResponse(generate(), media_type="audio/wav")


class Replicas:
    "Replicas of which the first ones end after some messages."

    def __init__(self, *ends):
        self.ends, self.asked, self.open = list(ends), [], 0

    async def ask(self, scope, body, repeat):
        self.asked.append((scope, repeat))
        self.open += 1
        most = self.ends.pop(0) if self.ends else None
        try:
            n = 0
            async for message in answer_request(app, scope, body, repeat):
                if n == most:
                    raise ReplicaEnded("killed")
                yield message
                n += 1
        finally:
            self.open -= 1


def make_front(replicas, **settings):
    state = ServerState(ServerConfig(**settings), "nano")
    state.status = "ok"
    front = FastAPI()
    front.mount("/", Relay(replicas.ask, state))
    add_error_handlers(front)
    add_checks(front, state)
    return front, state


def post(front, path="/parts", **kwargs):
    async def run():
        transport = httpx.ASGITransport(front)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return await http.post(path, **kwargs)

    return asyncio.run(run())


async def call(front, send, leaves=None):
    "Call a front with a request whose client stays, or leaves at an event."
    incoming = [dict(type="http.request", body=b"")]

    async def receive():
        if incoming:
            return incoming.pop()
        await (leaves or asyncio.Event()).wait()
        return dict(type="http.disconnect")

    scope = dict(type="http", method="POST", path="/parts", query_string=b"", headers=[(b"host", b"127.0.0.1")])
    await asyncio.wait_for(front(scope, receive, send), 10)


@pytest.mark.parametrize("ends", [(), (0,), (1,), (2,), (7,), (PARTS + 1,), (PARTS + 2,), (3, 9), (9, 3), (0, 0)])
def test_an_answer_is_whole_whenever_a_replica_ends(ends):
    replicas = Replicas(*ends)
    front, state = make_front(replicas)
    response = post(front, content=b"12345")
    rows = [row.split("/") for row in response.text.rstrip(";").split(";")]
    assert response.status_code == 200 and response.headers["content-type"].startswith("audio/wav")
    assert [int(n) for n, *_ in rows] == list(range(PARTS)), rows
    assert {length for _, length, _ in rows} == {"5"} and len({seed for *_, seed in rows}) == 1
    assert len(replicas.asked) == 1 + len(ends) and replicas.open == 0
    assert len({repeat for _, repeat in replicas.asked}) == 1
    assert state.metrics.registry.get_sample_value("metavoice_audio_seconds_total") == 2.5
    labels = dict(route="/parts", status="200")
    assert state.metrics.registry.get_sample_value("metavoice_requests_total", labels) == 1


def test_each_request_has_its_own_seed():
    replicas = Replicas()
    front, _ = make_front(replicas)
    for _ in range(3):
        post(front)
    assert len({repeat.seed for _, repeat in replicas.asked}) == 3


def test_only_plain_data_is_sent_to_replicas():
    replicas = Replicas()
    post(make_front(replicas)[0], headers={"X-Name": "value"})
    scope = replicas.asked[0][0]
    assert [b"x-name", b"value"] in [list(pair) for pair in scope["headers"]]
    assert pickle.loads(pickle.dumps(scope)) == scope


def test_five_dead_replicas_are_an_error_that_says_when_to_retry(monkeypatch):
    monkeypatch.setattr(relay, "PAUSE", 0.01)
    replicas = Replicas(0, 0, 0, 0, 0, 0)
    response = post(make_front(replicas)[0])
    assert response.status_code == 503 and response.headers["retry-after"] == "5"
    assert response.json()["error"]["code"] == "replicas" and len(replicas.asked) == 5


def test_a_different_second_answer_is_not_joined_to_the_first():
    class Different(Replicas):
        async def ask(self, scope, body, repeat):
            async for message in super().ask(scope, body, Repeat(len(self.asked), 1)):
                yield message

    replicas, messages = Different(9), []

    async def send(message):
        messages.append(message)

    asyncio.run(call(make_front(replicas)[0], send))
    assert len(replicas.asked) == 2 and all(message.get("more_body") for message in messages[1:])
    assert b"".join(message["body"] for message in messages[1:]).endswith(b"7/0/0;")  # nothing of the second one


def test_a_full_queue_has_status_429():
    class Full(Replicas):
        async def ask(self, scope, body, repeat):
            raise QueueFull("too many requests are running or waiting, and no more are accepted", 5)
            yield

    response = post(make_front(Full())[0])
    assert (response.status_code, response.headers["retry-after"]) == (429, "5")


def test_checks_come_before_the_replicas():
    replicas = Replicas()
    front, state = make_front(replicas, api_keys=("a-key-of-16-letters",), max_text=1)
    assert post(front).status_code == 401
    headers = {"Authorization": "Bearer a-key-of-16-letters"}
    assert post(front, content=bytes(200_000), headers=headers).status_code == 413
    assert post(front, headers=headers | {"Host": "evil.org"}).status_code == 421
    assert post(front, headers=headers | {"Origin": "https://evil.org"}).status_code == 403
    state.status = "stopping"
    assert post(front, headers=headers).status_code == 503
    assert not replicas.asked


def test_few_uploads_at_a_time():
    replicas = Replicas()
    front, state = make_front(replicas, uploads=1)
    upload = dict(files=dict(file=("a.wav", b"sound")))
    assert post(front, **upload).status_code == 200
    with state.upload_place():
        assert post(front, **upload).status_code == 429
    assert len(replicas.asked) == 1


def test_a_client_that_leaves_ends_the_work():
    replicas, leaves = Replicas(), asyncio.Event()
    front, state = make_front(replicas)

    async def send(message):
        if message["type"] == "http.response.body":
            leaves.set()
            await asyncio.Event().wait()  # a connection that takes no more

    asyncio.run(call(front, send, leaves))
    assert state.metrics.registry.get_sample_value("metavoice_left_total") == 1 and replicas.open == 0
