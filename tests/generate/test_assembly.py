"Assembly: edges, loudness, sections and the denoiser."
import pytest
import torch

from metavoice.audio.features import loudness, normalise_loudness
from metavoice.audio.sound import Audio
from metavoice.generate.assembly import Assembler, fade_edges, make_assembler
from metavoice.generate.segments import Segment
from metavoice.models.denoiser import Denoiser, enhance


def segment(number=0, pause=0., section_end=True, text_index=0):
    return Segment("", [], 0, None, text_index, number, pause, section_end)


def speech(seconds=2., level=.1, rate=24000):
    "A modulated tone with noise."
    t = torch.arange(int(seconds * rate)) / rate
    tone = level * torch.sin(2 * torch.pi * 180 * t) * (1 + torch.sin(2 * torch.pi * 3 * t))
    return tone + level * torch.randn(len(t), generator=torch.Generator().manual_seed(0)) / 5


def test_only_the_edges_are_faded():
    assert fade_edges(torch.ones(1000), 1000).sum() == pytest.approx(1000 - 5, abs=.01)
    assert len(fade_edges(torch.ones(1), 24000)) == 1
    assert torch.equal(fade_edges(torch.ones(50), 1000, False, False), torch.ones(50))


def test_a_short_text_is_at_its_loudness_and_denoised_as_a_whole():
    levelled, denoised = (Assembler(24000, denoise).add(segment(), speech()) for denoise in (False, True))
    assert torch.equal(levelled, normalise_loudness(fade_edges(speech(), 24000), 24000))
    assert torch.allclose(denoised, enhance(Audio(levelled, 24000)).samples, atol=1e-5)


def test_long_text_keeps_its_loudness_and_the_next_text_starts_afresh():
    parts = [speech(level=level) for level in (.1, .05, .08, .1, .02, .1)]
    assembler = Assembler(24000, False)
    out = [assembler.add(segment(n, .3, n == 5), part) for n, part in enumerate(parts)]
    again = assembler.add(segment(text_index=1), parts[4])
    assert abs(loudness(torch.cat(out), 24000) + 14) < 1.5
    assert loudness(out[4], 24000) < -18, "a softer segment stays softer"
    assert abs(loudness(again, 24000) + 14) < .2


def test_a_section_starts_afresh():
    parts = [speech(1.), speech(.7), speech(1.2)]
    assembler = Assembler(24000)
    out = [assembler.add(segment(n, .1, n != 0), part) for n, part in enumerate(parts[:2])]
    recent, gain = assembler.recent, assembler.gain
    last = assembler.add(segment(2, .1, True), parts[2])
    assert sum(map(len, out)) == 2 * (24000 + 16800 + 2 * 2400)
    later = Assembler(24000)  # as after an interruption
    later.recent, later.gain = recent, gain
    assert torch.equal(later.add(segment(2, .1, True), parts[2]), last)


def test_a_given_denoiser_gives_its_limit_and_keeps_its_state():
    own, samples = Denoiser(6), speech()
    first = own.process(torch.ones(4800))
    limited, free = (Assembler(24000, denoise).add(segment(), samples) for denoise in (own, True))
    assert (limited - free).abs().max() > 1e-3 and len(first) + len(own.flush()) == 4800


def test_silence_and_single_samples_pass():
    for samples in (torch.zeros(2400), torch.ones(1), torch.zeros(1)):
        assert Assembler(24000, False).add(segment(), samples).isfinite().all()


def test_an_unfinished_text_leaves_nothing_in_the_denoiser():
    begun, fresh = Assembler(24000), Assembler(24000)
    begun.add(segment(0, section_end=False), speech(.5))
    begun.forget()
    assert torch.equal(begun.add(segment(text_index=1), speech(.7)), fresh.add(segment(), speech(.7)))


def test_the_bundle_decides_loudness_and_limit(tts):
    made = make_assembler(tts.bundle)
    assert made.target == tts.bundle.defaults["loudness"] and made.stage == "denoiser"
    assert made._enhance.denoiser.attenuation_limit == tts.bundle.defaults["attenuation_limit"]
    plain = make_assembler(tts.bundle, False)
    assert (plain.sample_rate, plain.stage) == (tts.bundle.codec.sample_rate, "loudness")
