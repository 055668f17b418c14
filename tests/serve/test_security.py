"API keys, hosts, origins, and limits on the size of a request."

import httpx
import openai

KEYS = ("a-key-of-16-letters", "another-of-16-letters")


def test_an_api_key_is_required(serve, assert_error):
    with serve(api_keys=KEYS) as (server, http):
        wrong = ["wrong-key-of-16-letters", KEYS[0][:-1], KEYS[0] + "x"]
        responses = [http.get("/v1/models", headers=dict(Authorization=f"Bearer {key}")) for key in wrong]
        for response in (http.speak(), *responses):
            assert_error(response, 401, "API key")
            assert response.headers["www-authenticate"] == "Bearer"
        assert http.get("/metrics").status_code == 401
        assert http.get("/health").status_code == 200
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEYS[1])
        assert client.models.list().data[0].id == "nano"
        assert "security" in http.get("/openapi.json").json()


def test_other_hosts_and_origins_are_refused(http, assert_error):
    assert_error(http.get("/health", headers=dict(Host="evil.example")), 421, "evil.example")
    response = http.post("/tts", data=dict(text="The dog slept."), headers=dict(Origin="https://evil.example"))
    assert_error(response, 403)
    assert "access-control-allow-origin" not in http.get("/health").headers


def test_allowed_hosts_and_origins_are_served(serve, assert_error):
    mine = dict(Origin="https://mine.example", Host="speech.local")
    with serve(cors=("https://mine.example",), hosts=("speech.local",)) as (_, http):
        response = http.get("/health", headers=mine)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://mine.example"
        preflight = {"Origin": "https://mine.example", "Access-Control-Request-Method": "POST"}
        assert http.options("/tts", headers=preflight).status_code == 200
        assert_error(http.get("/health", headers=dict(Origin="https://evil.example")), 403)


def endless_upload():
    yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    for _ in range(100):
        yield b"x" * 100_000


def test_sizes_are_limited_before_the_work(serve, assert_error):
    with serve(max_text=20, max_upload=0.05, max_voices=1) as (_, http):
        assert_error(http.speak("This has more than twenty letters."), 400, "up to 20")
        files = dict(file=("a.ogg", b"x" * 1_000_000))
        assert_error(http.post("/v1/voices", data=dict(name="a"), files=files), 413, "larger")
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        try:
            assert_error(http.post("/v1/voices", content=endless_upload(), headers=headers), 413, "larger")
        except (httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
            pass  # the server closed the connection while the client was still sending
        assert http.speak().status_code == 200
