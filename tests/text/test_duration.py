"The seconds that a text plausibly takes."
import time

import pytest

from metavoice.audio.features import trim_silence
from metavoice.audio.sound import load_audio
from metavoice.text.duration import count_syllables, plausible_seconds

# The shortest and the longest clip by Flite's voices rms, awb and slt, silence at both ends included.
FLITE = {
    "Hi.": (.54, .8), "No.": (.605, .79), "A.": (.535, .595), "I.": (.57, .75), "W.": (.895, 1.125),
    "Yes?": (.75, .88), "Seven.": (.785, .87), "Hmm.": (.975, 1.375), "Shh.": (1.155, 1.27), "Go!": (.665, .805),
    "Strength.": (.935, 1.14), "Stop, now.": (1.165, 1.33), "Hello there.": (.975, 1.13), "X Y Z.": (1.21, 1.285),
    "Chapter one.": (1.01, 1.23), "The old man walked to the river.": (1.83, 2.15),
}
# Seconds that nano spoke where it failed: almost nothing, or seconds for a word.
FAILED = [("No.", .03), ("No.", .11), ("A", .11), ("Oh.", .05), ("Hi", 2.5), ("Hi", 6.8), ("A", 2.3), ("Twelve", 2.6)]


@pytest.mark.parametrize("text", FLITE)
def test_real_clips_are_plausible_also_faster_and_slower(text):
    least, most = plausible_seconds(text)
    assert least < .8 * FLITE[text][0] and 1.25 * FLITE[text][1] < most


@pytest.mark.parametrize("text, seconds", FAILED)
def test_failures_are_not_plausible(text, seconds):
    least, most = plausible_seconds(text)
    assert not least <= seconds <= most


def test_a_recording_is_plausible(speech):
    audio = load_audio(speech / "audio.wav")
    seconds = trim_silence(audio.samples).shape[-1] / audio.sample_rate
    least, most = plausible_seconds("Please call Stella.")
    assert 1.2 * least < seconds < .8 * most


def test_syllables():
    counts = dict(a=1, river=2, walked=1, wanted=2, table=2, horse=1, horses=2, beautiful=3, rhythm=1)
    for word, count in counts.items():
        assert count_syllables(word)[0] == count, word
    assert count_syllables("IBM") == (1, 3) and count_syllables("hmm") == (1, 2)
    assert count_syllables("世界") == (2, 2) and count_syllables("こんにちは") == (5, 5)
    low, high = count_syllables("1999")
    assert low < 4 < high
    low, high = count_syllables("здравствуйте")
    assert low < 4 < high


def test_longer_text_takes_longer():
    bounds = [plausible_seconds("The dog slept. " * n) for n in range(1, 20)]
    assert all(a < c and b < d for (a, b), (c, d) in zip(bounds, bounds[1:]))
    assert plausible_seconds("") < plausible_seconds("A")
    assert plausible_seconds("One, two")[1] > plausible_seconds("One two")[1]


@pytest.mark.parametrize("bit", ["(", '"a"))))', "[321 321 ", ".", "1/", "a.", "ee", "z\u0301", "世", "\U0001f600"])
def test_bounded_in_time(bit):
    text, began = (bit * 100_000)[:100_000], time.perf_counter()
    least, most = plausible_seconds(text)
    assert 0 < least < most and time.perf_counter() - began < 1
