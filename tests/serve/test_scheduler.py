"Batches that are shared between requests."

from concurrent.futures import ThreadPoolExecutor

import torch

from metavoice.audio.encode import to_int16

TEXTS = ["The dog slept.", "Where is it?", "Hello there.", "The cat slept."]


def test_requests_share_batches_and_keep_their_sound(server, tts, http, decode):
    scheduler = server.service.speech_service.scheduler
    steps, tokens = scheduler.steps, scheduler.tokens
    with ThreadPoolExecutor(4) as pool:
        responses = list(pool.map(lambda n: http.speak(TEXTS[n], seed=n, response_format="wav"), range(4)))
    assert {response.status_code for response in responses} == {200}
    assert (scheduler.tokens - tokens) / (scheduler.steps - steps) > 2.5
    for response, audio in zip(responses, tts.synthesise(TEXTS[:2], seed=[0, 1])):
        heard, _ = decode(response.content, dtype="int16")
        assert torch.equal(torch.from_numpy(heard), to_int16(audio.samples))
