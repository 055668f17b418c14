"The whole pipeline with nano: seeds, batches, voices, pieces, attempts, and what is refused."
import io, json, logging, shutil
from pathlib import Path

import pytest
import soundfile
import torch

import metavoice.tts as pipeline
from metavoice.audio import Audio, load
from metavoice.bundle import load_bundle
from metavoice.core import AudioError, BundleError, MetaVoiceError, OptionError, OutputError, TextError
from metavoice.mbd import UNetConfig, fit_processors, untrained_mbd
from metavoice.sampling import Generated
from metavoice.tts import TTS, Piece, Voice, drawing_options, first_stage, join, stage_seed, vocode

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
    audio = load(next((NANO / "voices").iterdir()))
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
    assert len({stage_seed(s, what) for s in range(-50, 50) for what in ("first", "second", "mbd")}) == 300


# pieces, options, progress

def test_long_text_is_split_and_joined(tts):
    pieces = tts.pieces([FIVE[4]], seed=1)
    limit = pipeline.piece_limit(tts.bundle)
    assert len(pieces) > 1 and " ".join(p.text for p in pieces) == FIVE[4]
    assert all(len(p.ids) <= limit for p in pieces) and len({p.seed for p in pieces}) == len(pieces)
    codes, = tts.codes([FIVE[4]], seed=1)
    audio = tts.synthesise(FIVE[4], seed=1, denoise=False, vocoder="codec")
    rate, hop = tts.bundle.codec.sample_rate, tts.bundle.codec.hop
    assert len(audio.samples) == sum(c.shape[1] for c in codes)*hop + round(.12*rate)*(len(codes)-1)

def test_a_piece_fits_both_windows_of_the_release(tts):
    class Stage:
        def __init__(self, block_size): self.config = type("Config", (), dict(block_size=block_size))
    release = type("Release", (), dict(defaults={}, first=Stage(2048), second=Stage(1024)))
    limit = pipeline.piece_limit(release)
    assert limit + 22*limit <= 2048 and limit + 11*limit <= 1024 and limit > 60

def test_join_keeps_every_sample():
    assert join([torch.ones(1000), torch.ones(500)], 1000).sum() == pytest.approx(1500 - 10, abs=.01)
    assert len(join([torch.ones(1)], 24000)) == 1 and len(join([torch.zeros(0), torch.ones(5)], 10)) == 6

def test_progress_never_goes_back(tts):
    seen, timings = [], {}
    audios = tts.synthesise(FIVE[:2], seed=1, batch_size=1, progress=lambda *p: seen.append(p), timings=timings, vocoder="codec")
    assert len(audios) == 2
    for stage in {s for s, _, _ in seen}:
        done = [d for s, d, _ in seen if s == stage]
        assert done == sorted(done), stage
    assert max(d for s, d, _ in seen if s == "first stage") == timings["tokens"] > 20
    assert all(of is None or 0 <= d <= of for _, d, of in seen) and ("vocoder", 2, 2) in seen
    assert set(timings) == {"loading", "first stage", "second stage", "vocoder", "denoiser", "tokens"}

def test_options_over_the_defaults_of_the_bundle(tts):
    assert drawing_options(tts.bundle)["temperature"] == tts.bundle.defaults["temperature"]
    assert drawing_options(tts.bundle, guidance=2, temperature=0)["guidance"] == 2
    bold = [tts.codes([SHORT], seed=s, temperature=0)[0][0][:2] for s in (1, 2)]
    assert torch.equal(*bold), "at temperature 0 the first stage takes no notice of the seed"

@pytest.mark.parametrize("options,words", [(dict(guidance=.5), "guidance is 0.5"), (dict(top_p=0), "top_p is 0"), (dict(temperature=float("nan")), "temperature is nan"),
    (dict(vocoder="organ"), "unknown vocoder 'organ'; use mbd or codec"), (dict(seed="x"), "seed is 'x'"), (dict(seed=[1, 2]), "2 seeds for 1 texts"),
    (dict(voice=[None, None]), "2 voices for 1 texts")])
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

def attempts(monkeypatch, tts, script):
    "Run the first stage on two pieces with a `generate` that follows a script: for each attempt, (frames, finished) by text."
    calls = []
    def generate(model, prompts, speakers, *, layout, seeds, progress, **options):
        calls.append(seeds)
        plan, out = script[len(calls)-1], []
        for prompt, (frames, finished) in zip(prompts, plan):
            out.append(Generated(torch.cat([prompt, torch.tensor([5, 1029]*frames), torch.tensor([2048]*finished)]).long(), finished))
        return out
    monkeypatch.setattr(pipeline, "generate", generate)
    pieces = [Piece(t, tts.bundle.tokeniser.encode(t), n, tts.voice(), n) for n, t in enumerate(FIVE[:2])]
    return first_stage(tts.bundle, pieces, {}), calls

def test_only_what_failed_is_tried_again(monkeypatch, tts):
    codes, calls = attempts(monkeypatch, tts, [[(10, True), (0, True)], [(7, True)]])
    assert [c.shape[1] for c in codes] == [10, 7]
    assert [len(c) for c in calls] == [2, 1] and calls[1][0] not in calls[0]

def test_silence_is_an_error(monkeypatch, tts):
    with refused(MetaVoiceError, "nothing was said for 'Where is the red book?' in 3 attempts"):
        attempts(monkeypatch, tts, [[(10, True), (0, True)], [(0, True)], [(0, False)]])

def test_endless_speech_is_cut_with_a_warning(monkeypatch, tts, caplog):
    window = tts.bundle.second.config.block_size
    with caplog.at_level(logging.WARNING):
        codes, calls = attempts(monkeypatch, tts, [[(5000, False), (9, True)], [(5000, False)], [(5000, False)]])
    assert codes[0].shape[1] == window - len(tts.bundle.tokeniser.encode(SHORT)) and len(calls) == 3
    assert "'The dog slept.' came to no end" in caplog.text


# vocoders

def test_diffusion_is_wired(tts):
    torch.manual_seed(0)
    bundle = load_bundle(device="cpu")
    bundle.mbd = untrained_mbd(UNetConfig(latent_dim=bundle.codec.latent_dim, hidden=8, depth=2, growth=2., kernel=24, stride=12), n_bands=2).eval()
    fit_processors(bundle.mbd, torch.randn(2, 4800))
    piece = next(TTS(bundle).speak(tts.pieces([SHORT], seed=1), drawing_options(bundle)))
    seen = []
    a, b = vocode(bundle, piece, "mbd", lambda *p: seen.append(p)), vocode(bundle, piece, "mbd")
    assert torch.equal(a, b) and len(a) == piece.codes.shape[1]*bundle.codec.hop and a.isfinite().all()
    assert seen[-1][0] == seen[-1][1] and len(seen) > 2

def test_diffusion_of_nano(tts):
    if "mbd" not in tts.bundle.parts: pytest.skip("this nano comes without multi-band diffusion")
    audio = tts.synthesise(SHORT, seed=1, vocoder="mbd", denoise=False)
    assert audio.samples.isfinite().all() and audio.samples.abs().max() > .05

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
    voices = [tts.voice(source) for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), load(path))]
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
