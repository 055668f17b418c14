"The first stage's attempts, the choice among takes, and the vocoder."
import logging
from dataclasses import replace

import pytest
import torch

import metavoice.generate.codes as codes_module
from metavoice.audio.sound import Audio
from metavoice.bundle.load import load_bundle
from metavoice.core.errors import MetaVoiceError
from metavoice.generate.codes import Generation, make_takes, max_frames, pick_best_take, vocode
from metavoice.generate.sources import LocalSource, generate_codes
from metavoice.models.listener import ctc_score
from metavoice.models.mbd import fit_band_processors, make_mbd
from metavoice.models.unet import UNetConfig

SHORT = "The dog slept."


@pytest.fixture
def segment(tts):
    segment, = tts.segments([SHORT], seed=3)
    return segment


def after(bundle, segment, *attempts, heard=False):
    "A generation after attempts of (frames, finished); stops at the first that is accepted."
    generation = Generation(bundle, segment)
    generation.heard = heard
    for frames, finished in attempts:
        for token in [5, 1029] * frames + [2048] * finished:
            generation.add(token)
        if generation.close(finished):
            break
    return generation


def test_attempts_have_seeds_of_their_own(tts, segment):
    generation, seeds = Generation(tts.bundle, segment), []
    for _ in range(3):
        seeds.append(generation.request().seed)
        generation.close(True)
    assert len(set(seeds)) == 3
    with pytest.raises(MetaVoiceError, match="nothing was said for 'The dog slept.' in 3 attempts"):
        generation.result()


def test_an_attempt_is_repeated_if_it_is_silent_or_endless(tts, segment):
    made = after(tts.bundle, segment, (0, True), (5000, False), (7, True))
    assert made.attempt == 2 and made.result().shape == (2, 7) and not segment.cut
    assert after(tts.bundle, segment, (9, True)).attempt == 0


def test_what_has_been_heard_is_not_repeated(tts, segment):
    made = after(tts.bundle, segment, (9, False), heard=True)
    assert made.attempt == 0 and made.result().shape == (2, 9) and segment.cut


def test_endless_speech_is_cut_with_a_warning(tts, segment, caplog):
    with caplog.at_level(logging.WARNING):
        made = after(tts.bundle, segment, *[(5000, False)] * 3)
        assert made.is_too_long and made.result().shape[1] == max_frames(tts.bundle, segment)
    assert "'The dog slept.' came to no end in 3 attempts" in caplog.text
    for finished, frames in ((False, 9), (True, 5000), (True, 9)):
        after(tts.bundle, segment, (frames, finished), heard=True).result()
        assert segment.cut == (not finished or frames > 9)


def test_the_clearest_of_several_takes_is_kept(tts, segment, resolve):
    one = LocalSource(tts.bundle, resolve(takes=1))
    takes = make_takes(segment, 3)
    alone = [next(generate_codes([replace(take, is_take=False)], one)) for take in takes]
    clear = []
    for take in alone:
        audio = Audio(tts.bundle.codec.decode(take.codes[None])[0].detach(), 24000)
        clear.append(ctc_score(tts.bundle.listener, SHORT, audio))
    kept, = tts.codes([SHORT], seed=3, takes=3)
    assert len(set(clear)) > 1 and torch.equal(kept[0], alone[clear.index(max(clear))].codes)
    first, = tts.codes([SHORT], seed=3, takes=1)
    assert torch.equal(first[0], alone[0].codes)


def test_takes_without_an_end_give_way_to_one_with_an_end(monkeypatch, tts, segment, caplog):
    def takes(*ends):
        made = make_takes(segment, len(ends))
        for n, (take, end) in enumerate(zip(made, ends)):
            take.codes, take.cut = torch.full((2, 9), n), not end
        return made

    monkeypatch.setattr(codes_module, "ctc_score", lambda listener, text, audio: 0.)
    with caplog.at_level(logging.WARNING):
        pick_best_take(tts.bundle, segment, takes(False, True, False))
    assert (segment.codes[0] == 1).all() and not segment.cut and not caplog.text
    with caplog.at_level(logging.WARNING):
        pick_best_take(tts.bundle, segment, takes(False, False))
    assert segment.cut and "came to no end in any of 2 takes and was cut after 9 frames" in caplog.text


def test_takes_are_cut_without_a_warning(tts, segment, caplog):
    take = make_takes(segment, 2)[1]
    with caplog.at_level(logging.WARNING):
        after(tts.bundle, take, (9, False), heard=True).result()
    assert take.cut and not caplog.text


def test_a_take_without_sound_is_left_out(tts, segment):
    takes, error = make_takes(segment, 2), MetaVoiceError("nothing was said")
    takes[0].error, takes[1].codes = error, torch.full((2, 9), 4)
    pick_best_take(tts.bundle, segment, takes)
    assert (segment.codes[:2] == 4).all()
    takes[1].error = MetaVoiceError("another")
    with pytest.raises(MetaVoiceError, match="nothing was said"):
        pick_best_take(tts.bundle, segment, takes)


def test_multi_band_diffusion_is_connected(tts, resolve):
    torch.manual_seed(0)
    bundle = load_bundle(device="cpu")
    config = UNetConfig(latent_dim=bundle.codec.latent_dim, hidden=8, depth=2, growth=2., kernel=24, stride=12)
    bundle.mbd = make_mbd(config, n_bands=2).eval()
    fit_band_processors(bundle.mbd, torch.randn(2, 4800))
    segment = next(generate_codes(tts.segments([SHORT], seed=1), LocalSource(bundle, resolve(takes=1))))
    seen = []
    a = vocode(bundle, segment, "mbd", lambda *p: seen.append(p))
    b = vocode(bundle, segment, "mbd")
    assert torch.equal(a, b) and len(a) == segment.codes.shape[1] * bundle.codec.hop and a.isfinite().all()
    assert seen[-1][0] == seen[-1][1] and len(seen) > 2
