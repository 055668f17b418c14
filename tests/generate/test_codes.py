"The first stage's attempts, the choice among takes, and the vocoder."
import logging
import math
from dataclasses import replace

import pytest
import torch

import metavoice.generate.codes as codes_module
from metavoice.audio.sound import Audio
from metavoice.bundle.load import load_bundle
from metavoice.core.errors import MetaVoiceError
from metavoice.generate.codes import (
    Generation,
    frame_limits,
    generate_fine_codes,
    make_takes,
    pick_best_take,
    scored_text,
    vocode,
)
from metavoice.generate.sources import LocalSource, generate_codes
from metavoice.models.listener import ctc_score
from metavoice.models.mbd import fit_band_processors, make_mbd
from metavoice.models.unet import UNetConfig

SHORT = "The dog slept."
LONG = "The old man walked to the river, and the little dog ran after him."


@pytest.fixture
def segment(tts):
    segment, = tts.segments([SHORT], seed=3)
    return segment


def after(bundle, segment, *attempts, given=math.inf):
    "A generation after attempts of (frames, finished); stops at the first that is accepted."
    generation = Generation(bundle, segment, given)
    for frames, finished in attempts:
        for token in [5, 1029] * frames + [2048] * finished:
            generation.add(token)
        if generation.close(finished):
            break
    return generation


def test_attempts_have_seeds_of_their_own(tts, segment):
    generation, seeds = Generation(tts.bundle, segment), []
    for _ in range(7):
        seeds.append(generation.request().seed)
        generation.close(True)
    assert len(set(seeds)) == 7 == generation.attempts
    with pytest.raises(MetaVoiceError, match="nothing was said for 'The dog slept.' in 7 attempts"):
        generation.result()


def test_an_attempt_is_repeated_if_it_is_too_short_or_too_long(tts, segment):
    least, most = frame_limits(tts.bundle, segment.text, len(segment.ids))
    made = after(tts.bundle, segment, (0, True), (most, False), (least - 1, True), (most + 1, True), (least, True))
    assert made.attempt == 4 and made.result().shape == (2, least) and not segment.cut
    assert after(tts.bundle, segment, (most, True)).attempt == 0


def test_short_texts_have_more_attempts_and_takes_have_three(tts):
    counts = [Generation(tts.bundle, tts.segments([text])[0]).attempts for text in ("Hi", SHORT, LONG)]
    assert counts == [10, 7, 3]
    assert {Generation(tts.bundle, take).attempts for take in make_takes(tts.segments(["Hi"])[0], 3)} == {3}


def test_the_end_is_not_drawn_too_early_where_attempts_fail(tts, segment):
    least, most = frame_limits(tts.bundle, segment.text, len(segment.ids))
    endless = [(most - n, False) for n in range(6)]
    plans = [[], [(1, True)], [(1, True), (2, True)], endless[:2], endless]
    held = [len(after(tts.bundle, segment, *plan).request().no_end) for plan in plans]
    assert held == [0, 0, 2 * least, 0, 2 * least]
    assert after(tts.bundle, segment).request().max_new_tokens == 2 * most + 1


@pytest.fixture
def narrow(tts, monkeypatch):
    "nano, whose windows leave room for seventy frames beside any text."
    monkeypatch.setattr(codes_module, "max_frames", lambda bundle, tokens: 70)
    return tts.bundle


def test_speech_that_fills_the_window_is_split_again(narrow, tts):
    (segment,) = tts.segments([LONG], seed=3)
    generation = Generation(narrow, segment)
    seeds, prompts, frames = [], [], []
    while True:
        request = generation.request()
        seeds.append(request.seed)
        prompts.append(len(request.prompt))
        n = 70 if len(request.prompt) > 40 else 50 + len(frames)  # long parts fill the window
        for token in [5, 1029] * n + [2048] * (n < 70):
            generation.add(token)
        ended = generation.close(n < 70)
        frames += [n] * (n < 70)
        if ended:
            break
    assert len(frames) > 1 and prompts[0] == len(segment.ids) and max(prompts[1:]) < prompts[0]
    assert len(set(seeds)) == len(seeds) - 1  # only the first part has the seed of the whole
    codes = generation.result()
    assert codes.shape == (2, sum(frames)) and not segment.cut
    assert [count for _, count in segment.parts] == frames
    fine = generate_fine_codes(narrow, [segment], [codes])[0]
    first = replace(segment, ids=segment.parts[0][0], parts=[])
    assert fine.shape == (8, sum(frames)) and torch.equal(fine[:2], codes)
    expected = generate_fine_codes(narrow, [first], [codes[:, : frames[0]]])[0]
    assert torch.equal(fine[:, : frames[0]], expected)


def test_a_word_that_fills_the_window_is_cut(narrow, tts, caplog):
    (segment,) = tts.segments(["Floccinaucinihilipilification"])
    with caplog.at_level(logging.WARNING):
        made = after(narrow, segment, *[(70, False)] * 9)
        assert made.result().shape == (2, 70) and segment.cut and not segment.parts
    assert "was cut after 70 frames" in caplog.text


def test_a_stream_is_not_split_after_its_first_part(narrow, tts):
    (segment,) = tts.segments([LONG], seed=3)
    made = after(narrow, segment, (70, False), given=12)
    assert made.result().shape == (2, 70) and segment.cut and not segment.parts


def test_what_stays_too_short_is_used_with_a_warning(tts, segment, caplog):
    "A model that isn't constrained may draw tokens of one codebook only."
    with caplog.at_level(logging.WARNING):
        assert after(tts.bundle, segment, *[(3, True)] * 7).result().shape == (2, 3)
    assert "'The dog slept.' has 3 frames after 7 attempts, too few for its text" in caplog.text


def test_takes_of_a_plausible_length_come_first(monkeypatch, tts, segment):
    least, _ = frame_limits(tts.bundle, segment.text, len(segment.ids))
    takes = make_takes(segment, 3)
    for n, take in enumerate(takes):
        take.codes = torch.full((2, least - 1 + n // 2), n)
    monkeypatch.setattr(codes_module, "ctc_score", lambda listener, text, audio: -len(audio.samples))
    pick_best_take(tts.bundle, segment, takes)
    assert (segment.codes[0] == 2).all()


def test_a_long_attempt_that_repeats_itself_is_the_last(tts, segment):
    _, most = frame_limits(tts.bundle, segment.text, len(segment.ids))
    made = after(tts.bundle, segment, (most, False), (most, False), (9, True))
    assert made.attempt == 1 and made.result().shape[1] == most and segment.cut


def test_what_a_stream_has_given_out_is_not_repeated(tts):
    segment, = tts.segments([LONG])
    least, _ = frame_limits(tts.bundle, segment.text, len(segment.ids))
    assert after(tts.bundle, segment, given=20).request().no_end == range(40, 2 * least)
    made = after(tts.bundle, segment, (30, False), given=20)
    assert made.attempt == 0 and made.result().shape == (2, 30) and segment.cut
    assert after(tts.bundle, segment, (19, True), given=20).attempt == 1


def test_a_stream_holds_short_texts(tts):
    short, long = tts.segments(["Good morning.", LONG])[:2]
    assert [Generation(tts.bundle, segment, 25).given for segment in (short, long)] == [math.inf, 25]


def test_endless_speech_is_cut_with_a_warning(tts, segment, caplog):
    _, most = frame_limits(tts.bundle, segment.text, len(segment.ids))
    with caplog.at_level(logging.WARNING):
        assert after(tts.bundle, segment, *[(5000 + n, False) for n in range(7)]).result().shape[1] == most
    assert "'The dog slept.' came to no end in 7 attempts" in caplog.text
    long, = tts.segments([LONG])
    for finished, frames in ((False, 60), (True, 5000), (True, 60)):
        after(tts.bundle, long, (frames, finished), given=25).result()
        assert long.cut == (not finished or frames > 60)


@pytest.mark.parametrize("text, seconds", [("No.", (.2, 1.55)), ("Hi", (.2, 1.55)), ("Yes?", (.2, 1.55))])
def test_one_word_has_a_plausible_length(tts, resolve, text, seconds):
    "Two takes by each voice."
    segments = tts.segments([text] * 12, [*tts.bundle.voices] * 2, seed=list(range(12)))
    for (take,) in LocalSource(tts.bundle, resolve(takes=1)).codes(segments):
        duration = take.codes.shape[1] * tts.bundle.codec.hop / tts.bundle.codec.sample_rate
        assert seconds[0] <= duration <= seconds[1], (text, take.voice, take.seed)


def test_the_clearest_of_several_takes_is_kept(tts, segment, resolve):
    one = LocalSource(tts.bundle, resolve(takes=1))
    takes = make_takes(segment, 3)
    alone = [next(generate_codes([replace(take, is_take=False)], one)) for take in takes]
    clear = []
    for take in alone:
        audio = Audio(tts.bundle.codec.decode(take.codes[None])[0].detach(), 24000)
        clear.append(ctc_score(tts.bundle.listener, scored_text(tts.bundle, take), audio))
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
        after(tts.bundle, take, *[(99, False)] * 2).result()
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
