"Batches that are shared between requests."

from concurrent.futures import ThreadPoolExecutor

import torch

import metavoice.generate.decoding as decoding
from metavoice.audio.encode import to_int16
from metavoice.generate.options import SpeechOptions
from metavoice.serve.denoise_pool import Slots
from metavoice.serve.job import SpeechJob
from metavoice.serve.scheduler import BatchScheduler, SharedSource

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


def test_refused_memory_halves_the_rows(tts, monkeypatch):
    "Segments begin again with the same seeds, so their codes are those of a single one; none is lost."
    step = decoding.DecodeBatch.decode_step

    def decode_step(self, tokens):
        if len(tokens) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, tokens)

    monkeypatch.setattr(decoding.DecodeBatch, "decode_step", decode_step)
    options = SpeechOptions(takes=1).resolve(tts.bundle)
    with BatchScheduler(tts.bundle, max_batch=4) as scheduler:
        jobs = [SpeechJob(tts.segments([text], seed=n), options, None) for n, text in enumerate(TEXTS)]
        generations = [scheduler.submit(job.segments[0], job) for job in jobs]
        codes = [generation.wait()[0] for generation in generations]
        assert scheduler.max_batch == 1
    for n, (text, found) in enumerate(zip(TEXTS, codes, strict=True)):
        assert torch.equal(found, tts.codes([text], seed=n, takes=1)[0][0][:2])


def test_parts_are_short_however_many_jobs_run(tts):
    options = SpeechOptions(takes=1).resolve(tts.bundle)
    text = "The old man with the red book and the cat walked to the river in the garden by the window of the house."
    job = SpeechJob(tts.segments([text], seed=1), options, 0.5, running=50)
    with BatchScheduler(tts.bundle) as scheduler, Slots(1) as slots:
        ends = [0] + [c.shape[1] for parts in SharedSource(scheduler, job, slots).stream(job.segments, 15, 12)
                      for c, _ in parts]
    lengths = [end - begin for begin, end in zip(ends, ends[1:])]
    rate = tts.bundle.codec.sample_rate / tts.bundle.codec.hop
    assert ends[-1] > 5 * rate and max(lengths) <= 3 * rate + 15
