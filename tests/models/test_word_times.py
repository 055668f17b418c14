"Times of words from codes and from audio."
from pathlib import Path

import numpy as np
import pytest
import torch

from metavoice.audio.sound import load_audio
from metavoice.bundle.load import load_bundle
from metavoice.models.alignment import distinct_states, state_phones
from metavoice.models.word_times import span_times, spread_times, time_audio, time_codes
from metavoice.text.phonemes import phone_states
from metavoice.text.phonemizer import default_phonemizer
from metavoice.text.written import PHONEME_WORD

CLIPS = Path(__file__).parents[2] / "nbs" / "teacher_samples"
# the exact ends of the words by the teacher's durations, in seconds
EXACT = {
    "af_heart_1": (0.35, 0.7125, 1.0375, 1.775, 2.0, 2.3125, 2.6125, 2.7125, 2.8, 3.475),
    "am_michael_2": (0.7375, 1.125, 1.475, 1.75, 2.125, 2.4375, 2.575, 2.9375, 3.725),
}


@pytest.fixture(scope="module")
def nano():
    return load_bundle("nano", device="cpu")


def spans(phonemes):
    return [found.span() for found in PHONEME_WORD.finditer(phonemes)]


def test_every_frame_of_a_word_is_its_own(nano):
    "Codes that follow the phones exactly give the exact times."
    phonemes = "ðə ɹˈɛd dˈɔɹ, ænd nˈO mˈɔɹ."
    states, generator = distinct_states(phone_states(phonemes)), np.random.default_rng(1)
    frames = [generator.integers(1, 5) for _ in states]
    labels = np.repeat(np.arange(len(states)), frames)
    phones = state_phones(states, nano.codec.config.phones)
    entries = nano.codec.entry_phones.long()
    codes = torch.tensor([int(generator.choice((entries == phones[n]).nonzero()[:, 0].numpy())) for n in labels])
    times = time_codes(codes, phonemes, spans(phonemes), nano.codec)
    assert torch.equal(times, span_times(labels, phonemes, spans(phonemes), 0.04))
    ends = np.cumsum(frames) * 0.04
    assert times[0, 0] == pytest.approx(frames[0] * 0.04)  # the pause before
    assert times[-1, 1] == pytest.approx(ends[-2])  # the pause after
    assert times[1, 1] == times[2, 0]  # red door share a phone
    assert times[3, 0] - times[2, 1] == pytest.approx(frames[[s.name for s in states].index("pau", 1)] * 0.04)


@pytest.mark.parametrize("clip", EXACT)
@pytest.mark.parametrize("way", ["codes", "audio"])
def test_the_times_of_the_teacher_are_found(nano, clip, way):
    text = (CLIPS / f"{clip}.txt").read_text(encoding="utf-8").strip()
    phonemes = nano.tokeniser.fit_symbols(default_phonemizer()(text, "american"))
    samples = load_audio(CLIPS / f"{clip}.ogg", 24_000).samples
    with torch.inference_mode():
        if way == "audio":
            times = time_audio(samples, phonemes, spans(phonemes), nano.listener)
        else:
            codes = nano.codec.encode(samples[None])[0, 0]
            times = time_codes(codes, phonemes, spans(phonemes), nano.codec)
    errors = (times[:, 1] - torch.tensor(EXACT[clip])).abs()
    assert errors.median() < 0.03 and (errors[:-1] < 0.08).all(), times[:, 1]
    assert (times[1:, 0] >= times[:-1, 1]).all() and (times.diff(dim=1) > 0).all()


def test_speech_too_short_for_its_text_is_spread(nano):
    phonemes = "wˈʌn tˈu"
    for times in (
        time_codes(torch.zeros(3, dtype=torch.long), phonemes, spans(phonemes), nano.codec),
        time_audio(torch.zeros(2880), phonemes, spans(phonemes), nano.listener)[:2],
    ):
        assert times.shape == (2, 2) and (times.flatten().diff() >= 0).all() and times[-1, 1] <= 0.12 + 1e-9
    assert torch.equal(spread_times("", [(0, 0)], 1.0), torch.zeros(1, 2, dtype=torch.float64))
    assert time_codes(torch.zeros(3, dtype=torch.long), "", [], nano.codec).shape == (0, 2)
