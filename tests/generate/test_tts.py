"The whole pipeline with nano: seeds, batches, voices, pieces, streams, attempts, and what is refused."
import io, json, logging, math, shutil, threading, weakref
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch

import metavoice.tts as pipeline
from metavoice.audio.features import log_mel, loudness, normalise_loudness
from metavoice.audio.sound import Audio, load_audio
from metavoice.bundle.load import load_bundle
from metavoice.models.denoiser import Denoiser, enhance
from metavoice.core.errors import AudioError, BundleError, MetaVoiceError, OptionError, OutputError, TextError
from metavoice.models.listener import ctc_score
from metavoice.models.unet import UNetConfig
from metavoice.models.mbd import fit_band_processors, make_mbd
from metavoice.generate.decoding import GenerationOutput
from metavoice.text.tokeniser import SPLIT_PATTERN, Tokeniser
from metavoice.text.split import pause_after, split_with_pauses
from metavoice.generate.options import derive_seed, sampling_options
from metavoice.generate.voice import Voice
from metavoice.generate.segments import SEGMENTS_PER_SECTION, Segment
from metavoice.generate.codes import generate_codes, make_takes, receptive_field, vocode
from metavoice.generate.assembly import Assembler, fade_edges
from metavoice.generate.tts import TTS

NANO = Path(pipeline.__file__).parent / "nano"
SHORT = "The dog slept."
FIVE = [SHORT, "Where is the red book?", "The old man walked to the river.", "The cat and the dog slept quietly.",
        "The woman was tired, so she sat down. The old man walked to the river, and the little dog ran after him."]


def refused(kind, *words):
    class Check:
        def __enter__(self): return self
        def __exit__(self, _, error, __):
            assert isinstance(error, kind), error
            assert "\n" not in str(error)
            for word in words: assert word in str(error), str(error)
            return True
    return Check()

@pytest.fixture(scope="module")
def tts(): return TTS.from_pretrained(device="cpu")

@pytest.fixture(scope="module")
def together(tts): return tts.codes(FIVE, seed=[1, 2, 3, 4, 5])

@pytest.fixture(scope="module")
def speaking(): # five seconds of somebody
    audio = load_audio(next((NANO / "voices").iterdir()))
    return Audio(audio.samples[:5*audio.sample_rate], audio.sample_rate)


# seeds and batches

@pytest.mark.parametrize("n", range(5))
def test_same_tokens_alone_and_in_a_batch(tts, together, n):
    alone, = tts.codes([FIVE[n]], seed=n+1)
    assert len(alone) == len(together[n])
    for a, b in zip(alone, together[n]): assert torch.equal(a, b)

def test_codes_are_codes(tts, together):
    assert len({sum(c.shape[1] for c in each) for each in together}) > 2, "texts of different lengths should take different times"
    for codes in (c for each in together for c in each):
        assert codes.shape[0] == 8 and codes.shape[1] > 5 and 0 <= codes.min() and codes.max() < 1024

def test_small_batches_change_nothing(tts, together):
    for a, b in zip(tts.codes(FIVE[:3], seed=[1, 2, 3], batch_size=2), together): assert torch.equal(a[0], b[0])

def test_one_seed_one_audio(tts):
    once = tts.synthesise(SHORT, seed=7)
    assert once.sample_rate == 48000 and .2 < once.duration < 15 and once.samples.abs().max() <= 1
    again = TTS.from_pretrained(device="cpu").synthesise(SHORT, seed=7)
    assert torch.equal(once.samples, again.samples)

def test_another_seed_another_audio_and_company_changes_nothing(tts):
    alone = tts.synthesise(SHORT, seed=1, denoise=False)
    assert alone.sample_rate == tts.bundle.codec.sample_rate
    mixed = tts.synthesise([SHORT, FIVE[1], SHORT], seed=[1, 1, 2], denoise=False)
    assert torch.equal(mixed[0].samples, alone.samples) and not torch.equal(mixed[2].samples, alone.samples)

def test_no_global_state(tts):
    before = torch.get_rng_state()
    tts.codes([SHORT], seed=1)
    assert torch.equal(torch.get_rng_state(), before)

def test_fresh_seeds_differ(tts):
    a, b = tts.pieces([SHORT, SHORT])
    assert a.seed != b.seed
    a, b = tts.pieces([SHORT, SHORT], seed=3)
    assert a.seed == b.seed

def test_stage_seeds():
    assert len({derive_seed(s, what) for s in range(-50, 50) for what in ("first", "second", "mbd")}) == 300


# pieces, options, progress

def test_long_text_is_split_and_joined(tts):
    pieces = tts.pieces([FIVE[4]], seed=1)
    limit = pipeline.piece_limit(tts.bundle)
    assert len(pieces) > 1 and " ".join(p.text for p in pieces) == FIVE[4]
    assert all(len(p.ids) <= limit for p in pieces) and len({p.seed for p in pieces}) == len(pieces)
    codes, = tts.codes([FIVE[4]], seed=1)
    audio = tts.synthesise(FIVE[4], seed=1, denoise=False, vocoder="codec")
    rate, hop = tts.bundle.codec.sample_rate, tts.bundle.codec.hop
    assert len(audio.samples) == sum(c.shape[1] for c in codes)*hop + sum(round(p.pause*rate) for p in pieces)
    assert pieces[-1].pause == 0 and all(p.pause for p in pieces[:-1])

def test_a_piece_fits_both_windows_of_the_release(tts):
    class Stage:
        def __init__(self, block_size): self.config = type("Config", (), dict(block_size=block_size))
    release = type("Release", (), dict(defaults={}, first=Stage(2048), second=Stage(1024)))
    limit = pipeline.piece_limit(release)
    assert limit + 22*limit <= 2048 and limit + 11*limit <= 1024 and limit > 60

def test_pauses():
    bytewise = Tokeniser({bytes([b]): b for b in range(256)}, SPLIT_PATTERN)
    parts = split_with_pauses("One came.\nTwo went, three stayed.\n\n* * *\n\n  \nFour slept", bytewise, 12)
    assert [text for text, _ in parts] == ["One came.", "Two went,", "three", "stayed.", "Four slept"]
    pauses = [pause for _, pause in parts]
    assert pauses[4] == 0 and pauses[3] > pauses[0] > pauses[1] > pauses[2] > 0
    assert pause_after('"No!"') == pause_after("so.") == pause_after("好。") > pause_after("so;") > pause_after("so")

def test_edges_and_nothing_else_fade():
    assert fade_edges(torch.ones(1000), 1000).sum() == pytest.approx(1000 - 5, abs=.01)
    assert len(fade_edges(torch.ones(1), 24000)) == 1 and torch.equal(fade_edges(torch.ones(50), 1000, False, False), torch.ones(50))

def test_progress_never_goes_back(tts):
    seen, timings = [], {}
    audios = tts.synthesise(FIVE[:2], seed=1, batch_size=1, on_progress=lambda *p: seen.append(p), timings=timings, vocoder="codec")
    assert len(audios) == 2
    for stage in {s for s, _, _ in seen}:
        done = [d for s, d, _ in seen if s == stage]
        assert done == sorted(done), stage
    assert max(d for s, d, _ in seen if s == "first stage") == timings["tokens"] > 20
    assert all(of is None or 0 <= d <= of for _, d, of in seen) and ("vocoder", 2, 2) in seen
    assert set(timings) == {"loading", "first stage", "second stage", "listener", "vocoder", "denoiser", "tokens"}

def test_the_clearest_of_several_takes_is_kept(tts):
    piece, = tts.pieces([SHORT], seed=3)
    takes = make_takes(piece, 4)
    alone = [next(tts.speak([replace(take)], sampling_options(tts.bundle, takes=1))) for take in takes]
    clear = [ctc_score(tts.bundle.listener, SHORT, Audio(tts.bundle.codec.decode(p.codes[None])[0].detach(), 24000)) for p in alone]
    kept, = tts.codes([SHORT], seed=3, takes=4)
    assert len(set(clear)) > 1 and torch.equal(kept[0], alone[clear.index(max(clear))].codes)
    first, = tts.codes([SHORT], seed=3, takes=1)
    assert torch.equal(first[0], alone[0].codes)

def test_takes_without_an_end_give_way_to_one_with_an_end(monkeypatch, tts, caplog):
    piece, = tts.pieces([SHORT], seed=3)
    def drawn(ends):
        takes = make_takes(piece, len(ends))
        for take, end in zip(takes, ends): pipeline.within_room(tts.bundle, take, torch.zeros(2, 9, dtype=torch.long), end)
        return takes, [torch.full((2, 9), n, dtype=torch.long) for n in range(len(ends))]
    monkeypatch.setattr(pipeline, "clearness", lambda listener, text, audio: 0.)
    with caplog.at_level(logging.WARNING): pipeline.complete(tts.bundle, piece, *drawn([False, True, False]))
    assert (piece.codes[0] == 1).all() and not piece.cut and not caplog.text
    with caplog.at_level(logging.WARNING): pipeline.complete(tts.bundle, piece, *drawn([False, False]))
    assert piece.cut and "came to no end in any of 2 takes and was cut after 9 frames" in caplog.text

def test_takes_need_a_listener_and_time(tts):
    deaf = copy(tts.bundle)
    deaf.manifest = tts.bundle.manifest | dict(parts={k: v for k, v in tts.bundle.manifest["parts"].items() if k != "listener"})
    with refused(OptionError, "has no listener to choose between 2 takes; use takes=1"): TTS(deaf).synthesise(SHORT, takes=2)
    with refused(OptionError, "takes is 3, but what is streamed in chunks"): tts.stream(SHORT, takes=3)
    with refused(OptionError, "takes is 3, but what is streamed in chunks"): tts.stream(SHORT, takes=3, chunk=.1)
    assert torch.equal(sound(list(tts.stream(SHORT, seed=1, takes=2, chunk=None))), tts.synthesise(SHORT, seed=1, takes=2).samples)

def test_options_over_the_defaults_of_the_bundle(tts):
    assert sampling_options(tts.bundle)["temperature"] == tts.bundle.defaults["temperature"]
    assert sampling_options(tts.bundle, guidance=2, temperature=0)["guidance"] == 2
    bold = [tts.codes([SHORT], seed=s, temperature=0)[0][0][:2] for s in (1, 2)]
    assert torch.equal(*bold), "at temperature 0 the first stage takes no notice of the seed"

@pytest.mark.parametrize("options,words", [(dict(guidance=.5), "guidance is 0.5"), (dict(top_p=0), "top_p is 0"), (dict(temperature=float("nan")), "temperature is nan"),
    (dict(vocoder="organ"), "unknown vocoder 'organ'; use mbd or codec"), (dict(seed="x"), "seed is 'x'"), (dict(seed=[1, 2]), "2 seeds for 1 texts"),
    (dict(voice=[None, None]), "2 voices for 1 texts"), (dict(vocoder="codec", steps=5), "steps are for the vocoder mbd"), (dict(vocoder="mbd", steps=0), "steps is 0"),
    (dict(vocoder="mbd", steps=2.5), "steps is 2.5"), (dict(takes=0), "takes is 0; use a whole number from 1 to 16"), (dict(takes=True), "takes is True"), (dict(vocoder="mbd", steps=10_000), "10000 steps of diffusion; use 1 to")])
def test_options_refused(options, words):
    with refused(OptionError, words): TTS.from_pretrained(device="cpu").synthesise(SHORT, **options)

@pytest.mark.parametrize("text,words", [("", ["the text is empty"]), (" \n\t", ["the text is empty"]), ("?!", ["nothing to say"]), ("I smile 😀.", ["'😀'", "position 8"]),
    ("Ω is odd", ["'Ω'", "position 0"]), (None, ["not NoneType"]), (b"bytes", ["not bytes"]), ([SHORT, ""], ["empty", "text 2 of 2"])])
def test_texts_refused_before_anything_is_loaded(text, words):
    fresh = TTS.from_pretrained(device="cpu")
    with refused(TextError, *words): fresh.synthesise(text)
    assert not {"first", "second", "codec"} & set(vars(fresh.bundle))

def test_no_texts_no_audio(tts): assert tts.synthesise([], denoise=False) == []

def test_device_that_is_not_there():
    with refused(OptionError, "unknown device 'abacus'"): TTS.from_pretrained(device="abacus")
    if not torch.cuda.is_available():
        with refused(OptionError, "'cuda' isn't available here"): TTS.from_pretrained(device="cuda")


# attempts

def attempts(monkeypatch, tts, *plans, rows=16):
    "Run the first stage with a `generate_stream` that follows a plan for each piece: for each attempt (frames, finished)."
    pieces, seeds = [Segment(t, tts.bundle.tokeniser.encode(t), n, tts.voice(), n) for n, t in zip(range(len(plans)), FIVE)], [[] for _ in plans]
    def generate_stream(model, requests, *, layout, max_rows, on_progress):
        which, index = {tuple(i+layout.text_offset for i in p.ids): n for n, p in enumerate(pieces)}, 0
        for request in requests:
            assert request is not None, "nobody is at work, so there is nothing to wait for"
            n = which[tuple(request.prompt.tolist())]
            frames, finished = plans[n][len(seeds[n])%len(plans[n])]
            seeds[n].append(request.seed)
            yield index, GenerationOutput(torch.cat([request.prompt, torch.tensor([5, 1029]*frames), torch.tensor([2048]*finished)]).long(), finished)
            index += 1
    monkeypatch.setattr(pipeline, "generate_stream", generate_stream)
    return list(generate_codes(tts.bundle, pieces, {}, rows)), seeds

def test_only_what_failed_is_tried_again(monkeypatch, tts):
    codes, seeds = attempts(monkeypatch, tts, [(10, True)], [(0, True), (7, True)], [(4, True)])
    assert [c.shape[1] for c in codes] == [10, 7, 4]
    assert [len(s) for s in seeds] == [1, 2, 1] and len({*seeds[0], *seeds[1]}) == 3

def test_silence_is_an_error_and_the_others_are_spoken(monkeypatch, tts):
    codes, _ = attempts(monkeypatch, tts, [(10, True)], [(0, True), (0, True), (0, False)], [(4, True)])
    with refused(MetaVoiceError, "nothing was said for 'Where is the red book?' in 3 attempts"): raise codes[1]
    assert [c.shape[1] for c in codes[::2]] == [10, 4]
    pieces = tts.pieces(FIVE[:3], seed=1)
    assert [p.error is None for p in tts.speak(pieces, {}, refuse=False)] == [True, False, True]
    with refused(MetaVoiceError, "nothing was said"): list(tts.speak(tts.pieces(FIVE[:3], seed=1), {}))

def test_endless_speech_is_cut_with_a_warning(monkeypatch, tts, caplog):
    window = tts.bundle.second.config.block_size
    with caplog.at_level(logging.WARNING): codes, seeds = attempts(monkeypatch, tts, [(5000, False)]*3, [(9, True)], [(9, False)]*3)
    assert [c.shape[1] for c in codes] == [window - len(tts.bundle.tokeniser.encode(SHORT)), 9, 9] and [len(s) for s in seeds] == [3, 1, 3]
    assert "'The dog slept.' came to no end in 3 attempts" in caplog.text and "was cut after 9 frames" in caplog.text
    marked = tts.pieces([SHORT], seed=1)[0]
    for finished, frames in ((False, 9), (True, 5000), (True, 9)):
        pipeline.within_room(tts.bundle, marked, torch.zeros(2, frames, dtype=torch.long), finished)
        assert marked.cut == (not finished or frames > 9)

def test_a_slow_piece_holds_the_others_back(monkeypatch, tts):
    on_start, pieces = [], tts.pieces(["The dog slept. "*60], seed=1)
    def generate_stream(model, requests, *, layout, max_rows, on_progress):
        first = next(requests)
        for index, request in enumerate(requests, 1):
            if request is None: break
            on_start.append(index)
            yield index, GenerationOutput(torch.cat([request.prompt, torch.tensor([5, 1029, 2048])]), True)
        yield 0, GenerationOutput(torch.cat([first.prompt, torch.tensor([5, 1029, 2048])]), True)
    monkeypatch.setattr(pipeline, "generate_stream", generate_stream)
    codes = list(generate_codes(tts.bundle, pieces, {}, 2))
    assert len(pieces) > 5 and on_start == [1, 2, 3] and len(codes) == 4


# streams

def alike(a, b, rate):
    "Correlation of two log-mel spectrograms."
    return torch.corrcoef(torch.stack([log_mel(x, rate).flatten() for x in (a, b)]))[0, 1]

LONG = "The old man walked to the river. Where is the red book? The cat slept, the dog ran."

def sound(chunks): return torch.cat([c.samples for c in chunks])

@pytest.fixture(scope="module")
def whole(tts): return tts.synthesise(LONG, seed=7)

def test_a_stream_of_whole_pieces_is_the_same_to_the_bit(tts, whole):
    chunks = list(tts.stream(LONG, seed=7, chunk=None))
    assert len(chunks) == len(tts.pieces([LONG])) > 1 and {c.sample_rate for c in chunks} == {48000}
    assert torch.equal(sound(chunks), whole.samples)

def test_a_stream_in_chunks_is_the_same_within_its_tolerance(tts):
    plain = tts.synthesise(LONG, seed=7, takes=1, denoise=False).samples
    timings, seen = {}, []
    chunks = list(tts.stream(LONG, seed=7, denoise=False, chunk=.4, timings=timings, on_progress=lambda *p: seen.append(p)))
    streamed = sound(chunks)
    assert len(chunks) > 2*len(tts.pieces([LONG])) and len(streamed) == len(plain)
    assert alike(streamed, plain, 24000) > .98
    assert abs(loudness(streamed, 24000) - loudness(plain, 24000)) < 1
    assert set(timings) == {"loading", "first stage", "second stage", "vocoder", "loudness", "tokens"} and timings["tokens"] == max(d for s, d, _ in seen if s == "first stage")

def test_a_denoised_stream_is_as_long_and_begins_soon(tts):
    whole, chunks = tts.synthesise(LONG, seed=7, takes=1), list(tts.stream(LONG, seed=7, chunk=.3))
    assert len(sound(chunks)) == len(whole.samples) and .2 < chunks[0].duration < .4
    assert alike(sound(chunks), whole.samples, 48000) > .98

def test_nothing_clicks_where_chunks_meet(tts):
    chunks = [c.samples for c in tts.stream("The old man walked to the river.", seed=1, denoise=False, chunk=.2)]
    assert len(chunks) > 4
    steps = torch.cat(chunks).diff().abs()
    for at in torch.tensor([len(c) for c in chunks[:-1]]).cumsum(0): assert steps[at-1] <= steps[max(0, at-480):at+480].max()
    assert steps.max() < .7

def test_the_context_of_the_codec_is_enough(tts):
    codec, hop = tts.bundle.codec, tts.bundle.codec.hop
    before, after = receptive_field(codec)
    codes = torch.randint(codec.codebook_size, (1, codec.n_codebooks, 100), generator=torch.Generator().manual_seed(1))
    whole, part = codec.decode(codes)[0], codec.decode(codes[..., :60+after])[0]
    assert 0 < after < 30 and before == math.inf # nano's codec counts periods from the beginning
    assert (part - whole[:len(part)])[:60*hop].abs().max() < 2e-3*whole.abs().max()

def test_the_reach_of_a_codec_is_found():
    class Echo(torch.nn.Module):
        codebook_size, n_codebooks = 1024, 8
        def __init__(self): super().__init__(); self.gain = torch.nn.Parameter(torch.ones(()))
        def decode(self, codes):
            x = torch.nn.functional.pad(codes[:,:1].float()*self.gain, (5, 2))
            return torch.nn.functional.conv1d(x, torch.ones(1, 1, 8))[:,0].repeat_interleave(4, 1)
    assert receptive_field(Echo()) == (5, 2)

def test_a_closed_stream_stops(tts):
    threads, timings = threading.active_count(), {}
    stream = tts.stream(LONG, seed=7, timings=timings)
    next(stream); stream.close()
    tokens = timings["tokens"]
    assert threading.active_count() == threads and 20 < tokens < 150
    assert list(stream) == [] and timings["tokens"] == tokens
    tts.stream(LONG).close() # not even begun

def test_a_stream_of_multi_band_diffusion_goes_by_pieces(tts):
    if "mbd" not in tts.bundle.parts: pytest.skip("this nano comes without multi-band diffusion")
    chunks = list(tts.stream(SHORT, seed=1, vocoder="mbd", denoise=False))
    assert len(chunks) == 1 and torch.equal(sound(chunks), tts.synthesise(SHORT, seed=1, vocoder="mbd", denoise=False).samples)

@pytest.mark.parametrize("text,options,words", [("", {}, "the text is empty"), ([SHORT], {}, "not list"), ("Smile 😀", {}, "position 6"), (SHORT, dict(chunk=0), "chunk is 0; use .05 to 60 seconds"),
    (SHORT, dict(chunk="long"), "chunk is 'long'"), (SHORT, dict(seed=.5), "seed is 0.5"), (SHORT, dict(vocoder="organ"), "unknown vocoder"), (SHORT, dict(voice="nobody.wav"), "no such file")])
def test_streams_refuse_at_once(tts, text, options, words):
    with refused(MetaVoiceError, words): tts.stream(text, **options)

def script(monkeypatch, attempts):
    "Let `generate_steps` follow a script: for each attempt the number of frames, and whether it ends."
    calls = []
    def generate_steps(model, prompts, speakers, *, layout, seeds, **options):
        calls.append(seeds)
        frames, finished = attempts[len(calls)-1]
        for _ in range(frames): yield [(0, 5)]; yield [(0, 1029)]
        if finished: yield [(0, 2048)]
    monkeypatch.setattr(pipeline, "generate_steps", generate_steps)
    return calls

def test_a_stream_tries_again_where_nothing_was_said(monkeypatch, tts):
    calls = script(monkeypatch, [(0, True), (0, True), (60, True)])
    assert len(sound(tts.stream(SHORT, denoise=False, seed=1))) == 60*tts.bundle.codec.hop and len({c[0] for c in calls}) == 3
    script(monkeypatch, [(0, True)]*3)
    with refused(MetaVoiceError, "nothing was said", "in 3 attempts"): list(tts.stream(SHORT, denoise=False))

def test_a_stream_without_an_end_is_cut_with_a_warning(monkeypatch, tts, caplog):
    calls, most = script(monkeypatch, [(5000, False)]), tts.bundle.second.config.block_size - len(tts.bundle.tokeniser.encode(SHORT))
    with caplog.at_level(logging.WARNING): assert len(sound(tts.stream(SHORT, denoise=False, seed=1))) == most*tts.bundle.codec.hop
    assert len(calls) == 1 and f"came to no end in 1 attempt and was cut after {most} frames" in caplog.text


# assembly

def piece(number=0, pause=0., closes=True, owner=0): return Segment("", [], 0, None, owner, number, pause, closes)

def speech(seconds=2., level=.1, rate=24000):
    t = torch.arange(int(seconds*rate))/rate
    return level*torch.sin(2*torch.pi*180*t)*(1+torch.sin(2*torch.pi*3*t)) + level*torch.randn(len(t), generator=torch.Generator().manual_seed(0))/5

def test_a_short_text_is_at_its_loudness_and_denoised_as_a_whole():
    levelled, denoised = (Assembler(24000, denoise).add(piece(), speech()) for denoise in (False, True))
    assert torch.equal(levelled, normalise_loudness(fade_edges(speech(), 24000), 24000))
    assert torch.allclose(denoised, enhance(Audio(levelled, 24000)).samples, atol=1e-5)

def test_long_text_keeps_to_its_loudness_and_forgets_between_texts():
    parts = [speech(level=level) for level in (.1, .05, .08, .1, .02, .1)]
    assembly = Assembler(24000, False)
    out = [assembly.add(piece(n, .3, n == 5), part) for n, part in enumerate(parts)]
    again = assembly.add(piece(owner=1), parts[4])
    assert abs(loudness(torch.cat(out), 24000) + 14) < 1.5
    assert loudness(out[4], 24000) < -18, "what is spoken more softly stays softer"
    assert abs(loudness(again, 24000) + 14) < .2

def test_sections_begin_afresh(monkeypatch):
    monkeypatch.setattr(pipeline, "SECTION", 2)
    parts = [speech(1.), speech(.7), speech(1.2)]
    assembly = Assembler(24000)
    out = [assembly.add(piece(n, .1, n != 0), part) for n, part in enumerate(parts[:2])]
    recent, gain = assembly.recent, assembly.gain
    last = assembly.add(piece(2, .1, True), parts[2])
    assert sum(map(len, out)) == 2*(24000+16800+2*2400)
    later = Assembler(24000) # as after an interruption
    later.recent, later.gain = recent, gain
    assert torch.equal(later.add(piece(2, .1, True), parts[2]), last)

def test_a_denoiser_that_is_given_says_how_and_keeps_its_own_stream():
    own, samples = Denoiser(6), speech()
    on_start = own.process(torch.ones(4800))
    limited, free = (Assembler(24000, denoise).add(piece(), samples) for denoise in (own, True))
    assert (limited-free).abs().max() > 1e-3 and len(on_start) + len(own.flush()) == 4800

def test_silence_and_single_samples_pass():
    for samples in (torch.zeros(2400), torch.ones(1), torch.zeros(1)):
        assert Assembler(24000, False).add(piece(), samples).isfinite().all()

def test_a_missing_denoiser_is_noticed_before_any_work(monkeypatch, tts):
    import metavoice.deepfilter
    monkeypatch.setattr(metavoice.deepfilter, "WEIGHTS", metavoice.deepfilter.WEIGHTS.with_name("nowhere"))
    metavoice.deepfilter.load_network.cache_clear()
    for call in (tts.synthesise, tts.stream):
        with refused(BundleError, "nowhere"): call(SHORT)
    assert tts.synthesise(SHORT, denoise=False).duration > 0

def test_memory_does_not_grow_with_the_text(tts, monkeypatch):
    live, most = weakref.WeakSet(), []
    class Codes(torch.Tensor): pass
    def first_stage(bundle, pieces, options, rows, on_progress):
        for _ in pieces: yield torch.zeros(2, 5, dtype=torch.long)
    def second_stage(bundle, pieces, codes):
        out = [torch.zeros(8, 5, dtype=torch.long).as_subclass(Codes) for _ in pieces]
        live.update(out)
        return out
    monkeypatch.setattr(pipeline, "first_stage", first_stage); monkeypatch.setattr(pipeline, "second_stage", second_stage)
    monkeypatch.setattr(pipeline, "vocode", lambda bundle, piece, vocoder, on_progress, steps: torch.ones(100))
    for _ in tts.sounds(tts.pieces(["The dog slept. "*300], seed=1), {}, "codec", batch_size=4): most.append(len(live))
    assert len(most) > 90 and max(most) <= 2


# vocoders

def test_diffusion_is_wired(tts):
    torch.manual_seed(0)
    bundle = load_bundle(device="cpu")
    bundle.mbd = make_mbd(UNetConfig(latent_dim=bundle.codec.latent_dim, hidden=8, depth=2, growth=2., kernel=24, stride=12), n_bands=2).eval()
    fit_band_processors(bundle.mbd, torch.randn(2, 4800))
    piece = next(TTS(bundle).speak(tts.pieces([SHORT], seed=1), sampling_options(bundle)))
    seen = []
    a, b = vocode(bundle, piece, "mbd", lambda *p: seen.append(p)), vocode(bundle, piece, "mbd")
    assert torch.equal(a, b) and len(a) == piece.codes.shape[1]*bundle.codec.hop and a.isfinite().all()
    assert seen[-1][0] == seen[-1][1] and len(seen) > 2

def test_diffusion_of_nano(tts):
    if "mbd" not in tts.bundle.parts: pytest.skip("this nano comes without multi-band diffusion")
    audio = tts.synthesise(SHORT, seed=1, vocoder="mbd", denoise=False)
    assert audio.samples.isfinite().all() and audio.samples.abs().max() > .05

def test_steps_of_diffusion(tts):
    if "mbd" not in tts.bundle.parts: pytest.skip("this nano comes without multi-band diffusion")
    options, seen = dict(seed=1, vocoder="mbd", denoise=False), []
    usual = tts.synthesise(SHORT, **options).samples
    own = tts.bundle.defaults.get("mbd", {}).get("steps", 20)
    assert torch.equal(tts.synthesise(SHORT, steps=own, **options).samples, usual)
    few = tts.synthesise(SHORT, steps=2, on_progress=lambda *p: seen.append(p), **options).samples
    assert len(few) == len(usual) and not torch.equal(few, usual) and ("vocoder", 1, 2*len(tts.bundle.mbd.bands)) in seen
    assert torch.equal(sound(tts.stream(SHORT, steps=2, **options)), few)

def without(folder, part):
    "A copy of nano without one of its parts."
    shutil.copytree(NANO, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["parts"].pop(part, None)
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder

def test_no_diffusion_where_there_is_none(tmp_path):
    with refused(BundleError, "has no mbd", "use vocoder 'codec'"): TTS.from_pretrained(without(tmp_path / "plain", "mbd")).synthesise(SHORT, vocoder="mbd")


# voices

def wav(path, samples, rate, **kind):
    soundfile.write(path, samples, rate, **kind)
    return path

def test_a_voice_from_anything(tts, speaking, tmp_path):
    path = speaking.save(tmp_path / "me.wav")
    voices = [tts.voice(source) for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), load_audio(path))]
    assert all(torch.equal(v.embedding, voices[0].embedding) for v in voices)
    assert [v.name for v in voices] == ["me", "me", "voice", "voice", "voice"] and voices[0].seconds == pytest.approx(5, abs=.01)
    assert tts.voice(voices[0]) is voices[0]
    assert voices[0].embedding.norm() == pytest.approx(1, abs=1e-4)

def test_own_voices_have_names(tts):
    name = next(iter(tts.bundle.voices))
    assert tts.voice(name).name == name and torch.equal(tts.voice(name).embedding, tts.voice().embedding)

def test_voices_are_known_by_their_sound_not_by_their_file(tts, speaking, tmp_path):
    path = speaking.save(tmp_path / "v.wav")
    first = tts.voice(path)
    Audio(speaking.samples.flip(0), speaking.sample_rate).save(path)
    assert not torch.equal(tts.voice(path).embedding, first.embedding)

def test_every_format_and_channel_count(tts, speaking, tmp_path):
    plain = tts.voice(speaking).embedding
    for suffix in ("flac", "ogg", "mp3"):
        assert plain @ tts.voice(speaking.save(tmp_path / f"a.{suffix}")).embedding > .97, suffix
    six = wav(tmp_path / "six.wav", torch.stack([speaking.samples]*6, 1).numpy(), speaking.sample_rate)
    assert plain @ tts.voice(six).embedding > .99
    phone = speaking.resample(8000)
    stereo = wav(tmp_path / "phone.wav", torch.stack([phone.samples, .5*phone.samples], 1).numpy(), 8000)
    narrow = tts.voice(stereo).embedding
    assert narrow.isfinite().all() and plain @ narrow > .5

def test_saved_and_loaded(tts, speaking, tmp_path):
    voice = tts.voice(speaking)
    path = voice.save(tmp_path / "me.safetensors")
    for again in (Voice.load(path), tts.voice(path), tts.voice(str(path))): assert torch.equal(again.embedding, voice.embedding) and again.seconds == 5
    with refused(OutputError, ".safetensors"): voice.save(tmp_path / "me.wav")
    with refused(OutputError, "No such file"): voice.save(tmp_path / "no" / "me.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with refused(AudioError, "can't read the voice"): tts.voice(path)

def test_references_refused(tts, speaking, tmp_path):
    rate = speaking.sample_rate
    (tmp_path / "text.wav").write_text("This is no sound.")
    cases = {"nobody.wav": ["no such file", "the model's own voices are"], tmp_path: ["it is a directory"], tmp_path / "text.wav": ["isn't audio"],
             wav(tmp_path / "half.wav", speaking.samples[:rate//2].numpy(), rate): ["0.50 s long; at least 3 s"],
             wav(tmp_path / "two.wav", speaking.samples[:2*rate].numpy(), rate): ["2.00 s long; at least 3 s"],
             wav(tmp_path / "silent.wav", 0*speaking.samples.numpy(), rate): ["silent"],
             wav(tmp_path / "nan.wav", torch.full((5*rate,), torch.nan).numpy(), rate, subtype="FLOAT"): ["NaN"], 7: ["can't read audio from int"]}
    for source, words in cases.items():
        with refused(AudioError, *words): tts.synthesise(SHORT, source)

def test_the_release_asks_for_half_a_minute(speaking, tmp_path):
    manifest = json.loads((NANO / "bundle.json").read_text()) | dict(minimum_reference=30.)
    shutil.copytree(NANO, tmp_path / "strict")
    (tmp_path / "strict" / "bundle.json").write_text(json.dumps(manifest))
    strict = TTS.from_pretrained(tmp_path / "strict", device="cpu")
    with refused(AudioError, "5.00 s long; at least 30 s"): strict.voice(speaking)
    assert strict.voice().seconds >= 30

def test_a_model_without_a_voice(tmp_path):
    manifest = json.loads((NANO / "bundle.json").read_text()) | dict(voices={})
    shutil.copytree(NANO, tmp_path / "mute")
    (tmp_path / "mute" / "bundle.json").write_text(json.dumps(manifest))
    with refused(AudioError, "has no voice of its own"): TTS.from_pretrained(tmp_path / "mute").synthesise(SHORT)
