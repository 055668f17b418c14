"Errors after the first sound of a response."

import httpx
import pytest

LONG = " ".join(
    ["The old man walked to the river.", "Where is the red book?", "The dog and the cat slept quietly."] * 8
)


@pytest.mark.parametrize("stream_format", ["audio", "sse"])
def test_an_error_after_the_first_sound_is_visible(serve, stream_format):
    with serve(denoise=False) as (server, http), http.stream_speech(LONG, stream_format=stream_format) as response:
        parts = response.iter_raw()
        received = next(parts)
        for job in server.service.speech_service.jobs:
            job.deadline = 0
        if stream_format == "audio":
            with pytest.raises(httpx.RemoteProtocolError):  # the connection closes without the end of the body
                list(parts)
        else:
            received += b"".join(parts)
            assert b'"code": "timeout"' in received
            assert b"speech.audio.done" not in received
