"The speech service: queue, deadlines, disconnected clients, and the sound of a job."

import json
import math
import socket
import threading

import torch

from metavoice.generate.options import SpeechOptions
from metavoice.serve.job import Disconnected, SpeechJob
from metavoice.serve.service import SpeechService

SHORT = "The dog slept."
LONG = " ".join(
    ["The old man walked to the river.", "Where is the red book?", "The dog and the cat slept quietly."] * 8
)


def test_a_denoised_sentence_with_a_seed_equals_synthesise(tts):
    options = SpeechOptions(takes=1).resolve(tts.bundle)
    with SpeechService(tts) as service:
        jobs = [SpeechJob(tts.segments([SHORT], seed=5), options, deterministic=own) for own in (True, False, False)]
        for job in jobs:
            service.submit(job)
        alone, *shared = [torch.cat([audio.samples for audio in job.collect()]) for job in jobs]
    assert torch.equal(alone, tts.synthesise(SHORT, seed=5, takes=1).samples)
    for samples in shared:
        torch.testing.assert_close(samples, alone, atol=1e-5, rtol=0)


def test_a_full_queue_and_a_disconnected_client(serve, wait_until, assert_error):
    with serve(max_batch=1, queue=0, timeout=60, denoise=False) as (server, http):
        service = server.service.speech_service
        with http.stream_speech(LONG) as response:
            parts = response.iter_raw()
            next(parts)  # `parts` is kept, because a stream that is released disconnects
            refused = http.speak()
            assert_error(refused, 429, "no more are accepted")
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert wait_until(lambda: service.scheduler.num_rows() == 1)
        assert wait_until(lambda: not service.jobs and not service.scheduler.waiting)  # the row is free again
        assert wait_until(lambda: b"metavoice_left_total 1.0" in http.get("/metrics").content)
        assert http.speak().status_code == 200


def test_a_deadline_ends_a_job(serve, wait_until, assert_error):
    with serve(timeout=0.4, denoise=False) as (server, http):
        assert_error(http.speak(LONG, response_format="flac"), 504, "wasn't ready")
        assert wait_until(lambda: not server.service.speech_service.jobs)


def test_a_client_that_disconnects_while_it_waits_frees_its_place(serve, wait_until):
    with serve(max_batch=1, queue=4, denoise=False) as (server, http):
        jobs = server.service.speech_service.jobs
        with http.stream_speech(LONG) as response:
            parts = response.iter_raw()
            next(parts)
            body = json.dumps(dict(model="nano", input=LONG)).encode()
            head = "\r\n".join(
                [
                    "POST /v1/audio/speech HTTP/1.1",
                    "Host: localhost",
                    "Content-Type: application/json",
                    f"Content-Length: {len(body)}",
                    "",
                    "",
                ]
            ).encode()
            with socket.create_connection((http.base_url.host, http.base_url.port)) as waiting:
                waiting.sendall(head + body)
                assert wait_until(lambda: len(jobs) == 2)
            assert wait_until(lambda: "metavoice_left_total 1.0" in http.get("/metrics").text)
            assert len(jobs) == 1  # while the other one is still spoken
        assert wait_until(lambda: not jobs)


def test_a_waiting_job_gets_an_error_when_the_service_closes(tts, wait_until):
    service, ended, options = SpeechService(tts, max_batch=1, queue=1), threading.Event(), SpeechOptions()
    options = options.resolve(tts.bundle)
    first, second = [
        SpeechJob(tts.segments([LONG], tts.voice("af_heart"), 1), options, deterministic=False) for _ in range(2)
    ]
    second.on_ready, second.asked = ended.set, math.inf  # the first one doesn't let it go first
    for job in (first, second):
        service.submit(job)
    assert wait_until(lambda: first.began)
    assert second.began is None
    service.close()
    assert ended.wait(600)
    assert isinstance(second.take(), Disconnected)


def test_a_long_text_lets_a_short_one_go_first(tts):
    options = SpeechOptions(takes=1, denoise=False).resolve(tts.bundle)
    for chunk in (None, 0.5):
        began = threading.Event()
        with SpeechService(tts, max_batch=1, queue=1) as service:
            long, short = [
                SpeechJob(tts.segments([text], seed=1), options, chunk, deterministic=False, max_buffered=1000)
                for text in (LONG, SHORT)
            ]
            long.on_ready = began.set
            service.submit(long)
            assert began.wait(600)
            service.submit(short)
            short.collect()
            assert long in service.jobs
            assert sum(audio.duration for audio in long.collect()) > 20


def test_nothing_is_decoded_for_a_client_that_left_without_reading(tts, wait_until):
    options = SpeechOptions(takes=1, denoise=False).resolve(tts.bundle)
    with SpeechService(tts) as service:
        job = SpeechJob(tts.segments([LONG], seed=1), options, 0.5, deterministic=False, max_buffered=1.0)
        service.submit(job)
        assert wait_until(lambda: job.is_blocked)
        seconds = job.seconds
        assert wait_until(lambda: not service.scheduler.num_rows())  # the codes of the segment are there
        service.cancel_job(job)
        assert wait_until(lambda: not service.jobs)
        assert job.seconds == seconds
