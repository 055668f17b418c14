"CPU seconds, time to first audio, and the size of a model."
import subprocess
import sys
import time

import pytest
import torch

from metavoice.audio.sound import Audio
from metavoice.generate.options import SpeechOptions
from metavoice.measure.speed import bundle_megabytes, measure_speed, read_cpu_time, single_thread, time_speech

TEXT = "The dog slept."


def test_waiting_takes_no_cpu_time():
    before = read_cpu_time(), time.perf_counter()
    time.sleep(.2)
    assert read_cpu_time() - before[0] < .1 < time.perf_counter() - before[1]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not count child processes")
def test_child_processes_count():
    before, own = read_cpu_time(), time.process_time()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    assert read_cpu_time() - before > time.process_time() - own + .01


def test_one_thread_inside_the_block_only():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), single_thread():
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


def test_times_of_a_stream_that_is_closed():
    closed = []

    def speak():
        try:
            for n in range(3):
                time.sleep(.05)
                yield Audio(torch.full((800,), float(n)), 8000)
        finally:
            closed.append(1)

    whole, times = time_speech(speak)
    assert whole.duration == pytest.approx(.3) and whole.samples[-1] == 2
    assert .05 <= times.first_audio < times.wall >= .15 and times.cpu < times.wall
    first, _ = time_speech(speak, limit=1)
    assert first.duration == pytest.approx(.1) and len(closed) == 2


def test_speed_of_nano(tts, own):
    calls = []
    options = SpeechOptions(takes=1, denoise=False)
    found = measure_speed(tts, [TEXT, TEXT], own, options, on_progress=lambda: calls.append(1))
    assert found["calls"] == len(calls) == 2
    assert sum(found["cpu_by_stage"].values()) == pytest.approx(found["cpu"]["value"])
    assert {"first stage", "second stage", "vocoder"} <= set(found["seconds"])
    assert 0 < found["first_audio"]["value"] and 0 < found["first_audio_cpu"]["value"]
    assert measure_speed(tts, []) is None


def test_size_counts_what_is_needed(tts):
    sizes = [
        bundle_megabytes(tts.bundle, SpeechOptions(denoise=denoise, takes=takes).resolve(tts.bundle))
        for denoise, takes in ((False, 1), (False, 2), (True, 2))
    ]
    assert 1 < sizes[0] < sizes[1] < sizes[2] < 100
