"The class TTS with nano: seeds and batches, options, progress, streams, vocoders and errors."
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from tiny import write_tiny_bundle

import metavoice
import metavoice.models.deepfilter as deepfilter
from metavoice.audio.features import loudness
from metavoice.core.errors import BundleError, MetaVoiceError, OptionError, TextError
from metavoice.generate.tts import TTS

NANO = Path(metavoice.__file__).parent / "nano"
SHORT = "The dog slept."
FIVE = [SHORT, "Where is the red book?", "The old man walked to the river.", "The cat and the dog slept quietly.",
        "The woman was tired, so she sat down. The old man walked to the river, and the little dog ran after him."]
LONG = "The old man walked to the river. Where is the red book? The cat slept, the dog ran."


def sound(chunks):
    return torch.cat([chunk.samples for chunk in chunks])


# seeds and batches

@pytest.fixture(scope="module")
def together(tts):
    return tts.codes(FIVE, seed=[1, 2, 3, 4, 5], takes=2)


@pytest.mark.parametrize("n", range(5))
def test_the_same_codes_alone_and_in_a_batch(tts, together, n):
    alone, = tts.codes([FIVE[n]], seed=n + 1, takes=2)
    assert len(alone) == len(together[n])
    for a, b in zip(alone, together[n]):
        assert torch.equal(a, b)


def test_codes_are_codes(together):
    frames = {sum(c.shape[1] for c in each) for each in together}
    assert len(frames) > 2, "texts of different lengths should take different times"
    for codes in (c for each in together for c in each):
        assert codes.shape[0] == 8 and codes.shape[1] > 5 and 0 <= codes.min() and codes.max() < 1024


def test_small_batches_change_nothing(tts, together):
    for a, b in zip(tts.codes(FIVE[:3], seed=[1, 2, 3], takes=2, batch_size=2), together):
        assert torch.equal(a[0], b[0])


def test_one_seed_one_audio(tts):
    once = tts.synthesise(SHORT, seed=7)
    assert once.sample_rate == 48000 and .2 < once.duration < 15 and once.samples.abs().max() <= 1
    again = TTS.from_pretrained(device="cpu").synthesise(SHORT, seed=7)
    assert torch.equal(once.samples, again.samples)


def test_another_seed_gives_other_audio_and_a_batch_changes_nothing(tts):
    alone = tts.synthesise(SHORT, seed=1, takes=2, denoise=False)
    assert alone.sample_rate == tts.bundle.codec.sample_rate
    mixed = tts.synthesise([SHORT, FIVE[1], SHORT], seed=[1, 1, 2], takes=2, denoise=False)
    assert torch.equal(mixed[0].samples, alone.samples) and not torch.equal(mixed[2].samples, alone.samples)


def test_no_global_state_changes(tts):
    before = torch.get_rng_state()
    tts.codes([SHORT], seed=1, takes=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_greedy_codes_ignore_the_seed(tts):
    greedy = [tts.codes([SHORT], seed=s, temperature=0)[0][0][:2] for s in (1, 2)]
    assert torch.equal(*greedy)


# segments, options, progress

@pytest.mark.parametrize("options", [dict(temperature=0), dict(takes=1), dict(takes=3), dict(takes=1, guidance=2.)])
def test_both_engines_give_the_same_speech(tts, options):
    torch_tts = TTS.from_pretrained(device="cpu", engine="torch")
    assert (tts.bundle.step_engine, torch_tts.bundle.step_engine) == ("onnx", "torch")
    ours, theirs = (o.codes(FIVE[:2], seed=[1, 2], **options) for o in (tts, torch_tts))
    for a, b in zip(ours, theirs):
        assert torch.equal(torch.cat(a, 1)[:2], torch.cat(b, 1)[:2]), "the tokens of the first stage"
    a, b = (o.synthesise(SHORT, seed=1, denoise=False, **options).samples for o in (tts, torch_tts))
    assert len(a) == len(b) and (a - b).abs().max() < .02*a.abs().max()


def test_8_bit_weights_still_speak():
    quantised = TTS.from_pretrained(device="cpu", quantise="int8")
    assert quantised.bundle.step_engine == "onnx" and "int8" in repr(quantised)
    assert 8 < torch.cat(quantised.codes([SHORT], seed=1, takes=1)[0], 1).shape[1] < 150


def test_long_text_is_joined_with_pauses(tts):
    segments = tts.segments([FIVE[4]], seed=1)
    codes, = tts.codes([FIVE[4]], seed=1, takes=1)
    audio = tts.synthesise(FIVE[4], seed=1, takes=1, denoise=False, vocoder="codec")
    rate, hop = tts.bundle.codec.sample_rate, tts.bundle.codec.hop
    assert len(audio.samples) == sum(c.shape[1] for c in codes) * hop + sum(round(s.pause * rate) for s in segments)


def test_progress_never_goes_back(tts):
    seen, timings = [], {}
    audios = tts.synthesise(FIVE[:2], seed=1, takes=2, batch_size=1, vocoder="codec", timings=timings,
                            on_progress=lambda *p: seen.append(p))
    assert len(audios) == 2
    for stage in {s for s, _, _ in seen}:
        done = [d for s, d, _ in seen if s == stage]
        assert done == sorted(done), stage
    assert max(d for s, d, _ in seen if s == "first stage") == timings["tokens"] > 20
    assert all(of is None or 0 <= d <= of for _, d, of in seen)
    assert ("vocoder", 2, 2) in seen and ("denoiser", 2, 2) in seen
    stages = {"loading", "first stage", "second stage", "listener", "vocoder", "denoiser", "tokens"}
    assert set(timings) == stages


@pytest.mark.parametrize("options,words", [
    (dict(guidance=.5), "guidance is 0.5"), (dict(top_p=0), "top_p is 0"), (dict(temperature=float("nan")), "nan"),
    (dict(vocoder="organ"), "vocoder is 'organ'; use mbd or codec"), (dict(seed="x"), "seed is 'x'"),
    (dict(seed=[1, 2]), "2 seeds for 1 texts"), (dict(voice=[None, None]), "2 voices for 1 texts"),
    (dict(vocoder="codec", steps=5), "steps are for the vocoder mbd"), (dict(vocoder="mbd", steps=0), "steps is 0"),
    (dict(vocoder="mbd", steps=2.5), "steps is 2.5"), (dict(takes=0), "takes is 0; use a whole number from 1 to 16"),
    (dict(takes=True), "takes is True"),
])
def test_options_refused(options, words):
    with pytest.raises(OptionError) as e:
        TTS.from_pretrained(device="cpu").synthesise(SHORT, **options)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_unknown_options_are_refused(tts):
    with pytest.raises(TypeError, match="tempo"):
        tts.synthesise(SHORT, tempo=2)


@pytest.mark.parametrize("text,words", [
    ("", ["the text is empty"]), (" \n\t", ["the text is empty"]), ("?!", ["nothing to say"]),
    ("😀!", ["nothing to say", "😀"]), ("日本", ["nothing to say"]), (None, ["not NoneType"]),
    (b"bytes", ["not bytes"]), ([SHORT, ""], ["empty", "text 2 of 2"]),
])
def test_texts_refused_before_anything_is_loaded(text, words):
    fresh = TTS.from_pretrained(device="cpu")
    with pytest.raises(TextError) as e:
        fresh.synthesise(text)
    assert all(word in str(e.value) for word in words) and "\n" not in str(e.value)
    assert not {"first", "second", "codec"} & set(vars(fresh.bundle))


def test_no_texts_no_audio(tts):
    assert tts.synthesise([], denoise=False) == []


def test_unknown_devices():
    with pytest.raises(OptionError, match="unknown device 'abacus'"):
        TTS.from_pretrained(device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(OptionError, match="'cuda' isn't available here"):
            TTS.from_pretrained(device="cuda")


# streams

def test_a_stream_of_whole_segments_equals_synthesise(tts):
    text = "The dog slept.\n\nYes."
    whole = tts.synthesise(text, seed=7, takes=2)
    chunks = list(tts.stream(text, seed=7, takes=2, chunk=None))
    assert len(chunks) == len(tts.segments([text])) > 1 and {c.sample_rate for c in chunks} == {48000}
    assert torch.equal(sound(chunks), whole.samples)


def test_a_stream_in_chunks_is_close_to_synthesise(tts, spectra_correlate):
    plain = tts.synthesise(LONG, seed=7, takes=1, denoise=False).samples
    timings, seen = {}, []
    chunks = list(tts.stream(LONG, seed=7, denoise=False, chunk=.4, timings=timings,
                             on_progress=lambda *p: seen.append(p)))
    streamed = sound(chunks)
    assert len(chunks) > 2 * len(tts.segments([LONG])) and len(streamed) == len(plain)
    assert spectra_correlate(streamed, plain, 24000) > .98
    assert abs(loudness(streamed, 24000) - loudness(plain, 24000)) < 1
    assert set(timings) == {"loading", "first stage", "second stage", "vocoder", "loudness", "tokens"}
    assert timings["tokens"] == max(d for s, d, _ in seen if s == "first stage")


def test_a_denoised_stream_is_as_long_and_begins_soon(tts, spectra_correlate):
    whole, chunks = tts.synthesise(FIVE[2], seed=7, takes=1), list(tts.stream(FIVE[2], seed=7, chunk=.3))
    assert len(sound(chunks)) == len(whole.samples) and .2 < chunks[0].duration < .4
    assert spectra_correlate(sound(chunks), whole.samples, 48000) > .98


def test_nothing_clicks_where_chunks_meet(tts):
    text = "The old man walked to the river."
    chunks = [c.samples for c in tts.stream(text, seed=1, denoise=False, chunk=.2)]
    assert len(chunks) > 4
    steps = torch.cat(chunks).diff().abs()
    for at in torch.tensor([len(c) for c in chunks[:-1]]).cumsum(0):
        assert steps[at-1] <= steps[max(0, at-480):at+480].max()
    whole = tts.synthesise(text, seed=1, takes=1, denoise=False).samples
    assert steps.max() < 1.3 * whole.diff().abs().max()


def test_a_closed_stream_stops(tts):
    threads, timings = threading.active_count(), {}
    stream = tts.stream(LONG, seed=7, timings=timings)
    next(stream)
    stream.close()
    tokens = timings["tokens"]
    assert threading.active_count() == threads and 20 < tokens < 150
    assert list(stream) == [] and timings["tokens"] == tokens
    tts.stream(LONG).close()  # before it has begun


@pytest.mark.parametrize("text,options,words", [
    ("", {}, "the text is empty"), ([SHORT], {}, "not list"), ("Smile 你", dict(strict=True), "'你'"),
    (SHORT, dict(language="tlh"), "'tlh'"), (SHORT, dict(lexicon="no.tsv"), "no.tsv"),
    (SHORT, dict(chunk=0), "chunk is 0; use .05 to 60 seconds"), (SHORT, dict(chunk="long"), "chunk is 'long'"),
    (SHORT, dict(seed=.5), "seed is 0.5"), (SHORT, dict(vocoder="organ"), "vocoder is 'organ'"),
    (SHORT, dict(voice="nobody.wav"), "no such file"), (SHORT, dict(takes=3), "takes is 3, but a stream"),
    (SHORT, dict(takes=3, chunk=.1), "takes is 3, but a stream in chunks has a single take"),
])
def test_streams_refuse_at_once(tts, text, options, words):
    with pytest.raises(MetaVoiceError) as e:
        tts.stream(text, **options)
    assert words in str(e.value) and "\n" not in str(e.value)


# vocoders and the denoiser

@pytest.fixture(scope="module")
def diffusing(tmp_path_factory):
    "A tiny model with multi-band diffusion."
    return TTS.from_pretrained(write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny", mbd=True), "cpu")


def test_multi_band_diffusion(diffusing):
    options = dict(seed=1, denoise=False)
    audio = diffusing.synthesise(SHORT, vocoder="mbd", **options)
    decoded = diffusing.synthesise(SHORT, **options).samples
    assert audio.samples.isfinite().all() and audio.samples.abs().max() > .05
    assert len(decoded) == len(audio.samples) and not torch.equal(decoded, audio.samples)
    chunks = list(diffusing.stream(SHORT, vocoder="mbd", **options))
    assert len(chunks) == 1 and torch.equal(sound(chunks), audio.samples)


def test_steps_of_diffusion(diffusing):
    options, seen = dict(seed=1, vocoder="mbd", denoise=False), []
    usual = diffusing.synthesise(SHORT, **options).samples
    own = diffusing.bundle.defaults["mbd"]["steps"]
    assert torch.equal(diffusing.synthesise(SHORT, steps=own, **options).samples, usual)
    few = diffusing.synthesise(SHORT, steps=2, on_progress=lambda *p: seen.append(p), **options).samples
    assert len(few) == len(usual) and not torch.equal(few, usual)
    assert ("vocoder", 1, 2 * len(diffusing.bundle.mbd.bands)) in seen
    assert torch.equal(sound(diffusing.stream(SHORT, steps=2, **options)), few)
    with pytest.raises(OptionError, match="10000 steps of diffusion; use 1 to"):
        diffusing.synthesise(SHORT, **options, steps=10_000)


def test_a_model_without_diffusion(tmp_path):
    tts = TTS.from_pretrained(write_tiny_bundle(tmp_path / "tiny"), "cpu")
    for call in (tts.synthesise, tts.stream):
        for options in ({}, dict(steps=3)):
            with pytest.raises(BundleError, match="'tiny' has no mbd; .* use vocoder 'codec'"):
                call(SHORT, vocoder="mbd", **options)


def test_a_missing_denoiser_is_noticed_before_any_work(monkeypatch, tts):
    monkeypatch.setattr(deepfilter, "DF_WEIGHTS_PATH", deepfilter.DF_WEIGHTS_PATH.with_name("nowhere"))
    deepfilter.load_deepfilternet.cache_clear()
    for call in (tts.synthesise, tts.stream):
        with pytest.raises(BundleError, match="nowhere"):
            call(SHORT)
    assert tts.synthesise(SHORT, denoise=False, takes=1).duration > 0


def test_public_names_load_lazily():
    code = "import sys, metavoice; assert 'torch' not in sys.modules; from metavoice import TTS, Audio, Voice; " \
           "print(TTS.__module__, Audio.__module__, Voice.__module__, *metavoice.__all__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    homes = ["metavoice.generate.tts", "metavoice.audio.sound", "metavoice.bundle.voice"]
    assert run.stdout.split() == [*homes, "TTS", "Audio", "Voice"]
    with pytest.raises(AttributeError, match="module 'metavoice' has no attribute 'nothing'"):
        metavoice.nothing
