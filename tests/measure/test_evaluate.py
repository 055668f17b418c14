"Measuring: words, intervals, voices, recordings, settings, what comes out, and what is refused."
import csv, json, os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import metavoice.evaluate as measures
from metavoice.audio.sound import Audio, load_audio
from metavoice.cli.main import main
from metavoice.core.errors import AudioError, MetaVoiceError, OptionError, OutputError, TextError
from metavoice.measure.recognise import Sphinx, count_word_errors, load_whisper, normalise_words, pick_recogniser
from metavoice.measure.quality import (
    bootstrap_estimate, embed_speaker, load_speaker_references, score_clip, score_dnsmos, scoring_pool
)
from metavoice.measure.recordings import (
    EVALUATION_TEXTS, check_texts, read_recordings, read_texts, select_recordings, write_recordings
)
from metavoice.measure.report import (
    ClipResult, Evaluation, align_columns, grid_table, plot_grid, save_evaluation, summarise_clips,
    wer_std
)
from metavoice.measure.evaluate import evaluate, evaluate_grid, make_items, with_defaults
from metavoice.generate.options import sampling_options
from metavoice.generate.tts import TTS

ROOT = Path(__file__).parents[1]
SAMPLES, NANO = ROOT / "nbs" / "samples", Path(measures.__file__).parent / "nano"
SHORT = ["The dog slept.", "Where is the red book?"]
PLAIN = dict(mos=False, denoise=False, timed=0)


def length_as_words(audio): return " ".join(["the"]*round(audio.duration)) # a recogniser for tests, which processes can have too

@pytest.fixture(scope="module")
def tts(): return TTS.from_pretrained(device="cpu")

@pytest.fixture(scope="module")
def own(tts): return next(iter(tts.bundle.voices))

@pytest.fixture
def teacher(tts, own, tmp_path):
    "Recordings of two texts by the model's own first voice, each two seconds of its reference."
    audio = load_audio(tts.bundle.voices[own])
    second = audio.sample_rate
    return write_recordings(tmp_path / "teacher", ((own, t, Audio(audio.samples[2*n*second:2*(n+1)*second], second)) for n, t in enumerate(SHORT)))

def a_row(**changes):
    return ClipResult(**dict(source="model", voice="a", text="x", run=0, seed=1, seconds=2., ratio=1., words=4, errors=1, heard="", cosine=.8, nearest="a", overall=3., signal=3., background=3.) | changes)


# words

@pytest.mark.parametrize("text,words", [("The dog’s tail!", "the dog's tail"), ("'Quoted' — well-known", "quoted well known"), ("[Music] 7 o'clock <sil>", "7 o'clock"), ("?!", ""), ("a_b", "a b")])
def test_plain_words(text, words): assert normalise_words(text) == words

@pytest.mark.parametrize("heard,errors", [("the dog slept", 0), ("The DOG, slept!", 0), ("the cat slept", 1), ("dog", 2), ("", 3), ("well the dog has slept", 2)])
def test_word_errors(heard, errors): assert count_word_errors("The dog slept.", heard) == (errors, 3)

def test_sphinx_hears_the_same_whatever_came_before():
    first, second = (load_audio(SAMPLES / f"{v}_2.ogg") for v in ("awb", "slt"))
    sphinx = Sphinx()
    alone = sphinx(first)
    assert normalise_words(alone).startswith("nine small boats")
    sphinx(second)
    assert sphinx(first) == alone

def test_silence_is_no_speech(): assert score_clip(np.zeros(20000, "float32"), Sphinx(), True) == dict(heard="", overall=None, signal=None, background=None)

def test_nothing_is_no_speech(): assert score_clip(np.zeros(0, "float32"), Sphinx(), True)["heard"] == ""

def test_processes_hear_what_a_thread_hears(tts):
    clips = [Audio(torch.ones(16000*n), 16000) for n in (1, 2, 3)]
    for workers in (1, 2):
        with scoring_pool(length_as_words, False, workers) as ask: assert [f.result()["heard"] for f in [ask(c) for c in clips]] == ["the", "the the", "the the the"]

def test_errors_of_a_recogniser_come_through():
    def deaf(audio): raise ZeroDivisionError("deaf")
    with pytest.raises(ZeroDivisionError, match="deaf"):
        with scoring_pool(deaf, False) as ask: ask(Audio(torch.ones(9), 16000)).result()

@pytest.mark.parametrize("which,words", [("parrot", "unknown recogniser 'parrot'"), ("whisper:", "unknown recogniser"), (7, "unknown recogniser 7")])
def test_recogniser_refused(which, words):
    with pytest.raises(OptionError, match=words): pick_recogniser(which)

def test_whisper_that_is_not_there(tmp_path):
    with pytest.raises(OptionError, match="can't load the recogniser") as e: pick_recogniser(f"whisper:{tmp_path}")
    assert "\n" not in str(e.value)

def test_a_tiny_whisper_from_a_folder(tmp_path):
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer
    marks = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    vocabulary = {chr(c): i for i, c in enumerate(range(33, 127))}
    vocabulary |= {m: len(vocabulary)+i for i, m in enumerate(marks)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary)); (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokeniser = WhisperTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), additional_special_tokens=marks[1:])
    tokeniser.save_pretrained(tmp_path); WhisperFeatureExtractor().save_pretrained(tmp_path)
    start = vocabulary["<|startoftranscript|>"]
    config = WhisperConfig(vocab_size=len(tokeniser), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        max_target_positions=20, pad_token_id=start-1, bos_token_id=start-1, eos_token_id=start-1, decoder_start_token_id=start, suppress_tokens=None, begin_suppress_tokens=None)
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    model.generation_config.max_length = 8
    model.save_pretrained(tmp_path)
    recogniser = pick_recogniser(f"whisper:{tmp_path}")
    assert recogniser.name == f"whisper:{tmp_path}"
    assert isinstance(recogniser(load_audio(SAMPLES / "rms_1.ogg")), str) and recogniser(Audio(torch.zeros(100), 16000)) == ""
    load_whisper.cache_clear()


# intervals

def test_intervals_shrink_with_more_sentences():
    rng = np.random.default_rng(0)
    def width(n):
        e = bootstrap_estimate([(i, x, 1) for i, x in enumerate(rng.normal(size=n))])
        assert e["low"] < e["value"] < e["high"]
        return e["high"] - e["low"]
    assert width(400) < .5*width(40)

def test_a_ratio_of_sums_is_no_mean_of_ratios():
    assert bootstrap_estimate([("a", 1, 2), ("b", 1, 8)])["value"] == .2
    assert bootstrap_estimate([("a", 1, 1), ("b", 0, 1)], seed=3) == bootstrap_estimate([("a", 1, 1), ("b", 0, 1)], seed=3)
    assert bootstrap_estimate([]) is None

def test_seeds_are_no_sentences():
    rows = [(i, i % 2, 1) for i in range(20)]
    assert bootstrap_estimate(rows) == bootstrap_estimate(rows*5)

def test_deviation_over_runs():
    rows = [a_row(run=r, errors=e) for r, e in ((0, 0), (0, 2), (1, 4), (1, 4))]
    assert wer_std(rows) == pytest.approx(np.std([.25, 1.], ddof=1))
    assert wer_std(rows[:2]) is None

def test_summed_up():
    s = summarise_clips([a_row(), a_row(text="y", nearest="b", ratio=.5, seconds=0., errors=3), a_row(text="z", ratio=1.7), a_row(text="u", ratio=1.6)], True)
    assert (s["clips"], s["silent"], s["wer"]["value"], s["identified"]["value"], s["within"]["value"], s["ratios"]) == (4, 1, 6/16, .75, .5, [.5, 1.7])
    assert "identified" not in summarise_clips([a_row()], False), "with nobody to be mistaken for, nothing is identified"
    assert summarise_clips([], True) is None


# voices

def test_likeness_is_deaf_to_level(tts):
    clip = load_audio(SAMPLES / "slt_1.ogg")
    same = embed_speaker(tts.bundle.speaker_encoder, Audio(.1*clip.samples, clip.sample_rate)) @ embed_speaker(tts.bundle.speaker_encoder, clip)
    assert same > .999

def test_references(tts, own, tmp_path):
    found = load_speaker_references(tts, [own, SAMPLES])
    assert list(found) == [own] + [f"{v}_{n}" for v in ("awb", "rms", "slt") for n in (1, 2)]
    kept = tts.voice(own).save(tmp_path / "kept.safetensors")
    assert load_speaker_references(tts, [kept])[own].embedding.shape == (256,)
    assert load_speaker_references(tts, [load_audio(SAMPLES / "rms_1.ogg")])["voice"].voice.seconds > 3
    for bad, kind in (([], OptionError), ([own, own], OptionError), (["nobody.wav"], AudioError)):
        with pytest.raises(kind): load_speaker_references(tts, bad)

def test_every_sentence_has_its_own_seed(tts, own):
    jobs = make_items(load_speaker_references(tts, [own, SAMPLES / "slt_1.ogg"]), SHORT, range(3))
    assert len(jobs) == 12 == len({j.seed for j in jobs})
    assert [j.seed for j in make_items(load_speaker_references(tts, [own]), SHORT[1:], range(1, 2))] == [jobs[4].seed], "seeds depend on nothing but run, voice and text"


# recordings and texts

def test_recordings_there_and_back(teacher, own):
    found = read_recordings(teacher)
    assert [(v, t) for (v, _), (t, _) in found.items()] == [(own, t) for t in SHORT]
    assert select_recordings(found, [own], ["the dog slept"])[own, "the dog slept"].duration == pytest.approx(2)
    assert sorted(p.suffix for p in teacher.iterdir()) == [".csv", ".wav", ".wav"]

def test_recordings_refused(teacher, own, tmp_path):
    found, manifest = read_recordings(teacher), teacher / "manifest.csv"
    with pytest.raises(AudioError, match="lacks 3 of 4 recordings, the first being 'Hello.' by"): select_recordings(found, [own, "nobody"], [SHORT[0], "Hello."])
    with pytest.raises(AudioError, match="manifest.csv: No such file"): read_recordings(tmp_path)
    with pytest.raises(OutputError, match="it is there already"): write_recordings(teacher, [])
    with pytest.raises(OutputError, match="there is no folder"): write_recordings(tmp_path / "no" / "folder", [])
    lines = manifest.read_text().splitlines()
    for text, words in (("voice,text,file\n", "names no recordings"), ("voice,text\na,b\n", "line 2 has no file"), ("\n".join([*lines, lines[1]]), "line 4 is a second recording"),
                        ("voice,text,file\na,b,gone.wav\n", "gone.wav: there is no such file")):
        manifest.write_text(text)
        with pytest.raises(AudioError, match=words): read_recordings(teacher)
    manifest.write_bytes(b"voice,text,file\na,\xff,b.wav\n")
    with pytest.raises(AudioError, match="can't read"): read_recordings(teacher)

def test_recordings_are_whole_or_not_there(tmp_path):
    def broken():
        yield "a", "b", Audio(torch.ones(9), 16000)
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): write_recordings(tmp_path / "new", broken())
    assert not list(tmp_path.iterdir())

def test_texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\ufeffOne dog.\r\n\r\n  Two dogs. \n", encoding="utf-8")
    assert read_texts(path) == ["One dog.", "Two dogs."]
    for content, words in ((b"", "is empty"), (b"?!\n", "text 1 of .* has no words"), (b"A dog.\na dog\n", "texts 1 and 2 of .* are the same"), (b"Sch\xf6n\n", "isn't UTF-8")):
        path.write_bytes(content)
        with pytest.raises(TextError, match=words): read_texts(path)
    with pytest.raises(TextError, match="No such file"): read_texts(tmp_path / "gone.txt")
    assert check_texts(EVALUATION_TEXTS) == list(EVALUATION_TEXTS) and len(EVALUATION_TEXTS) == 20


# settings

def test_a_variant_leaves_the_original_alone(tts):
    before = dict(tts.bundle.defaults)
    other = with_defaults(tts, temperature=.3, top_k=5)
    assert sampling_options(other.bundle) | dict(temperature=.3, top_k=5) == sampling_options(other.bundle) and tts.bundle.defaults == before
    for bad, words in ((dict(speed=1), "unknown setting 'speed'"), (dict(temperature=-1), "temperature is -1"), (dict(vocoder="organ"), "unknown vocoder"), (dict(top_k=1.5), "top_k is 1.5")):
        with pytest.raises(OptionError, match=words): with_defaults(tts, **bad)


# everything

def test_evaluate(tts, own, teacher, tmp_path):
    seen = []
    found = evaluate(tts, voices=[own], teacher=teacher, gallery=[SAMPLES / "slt_1.ogg"], seeds=2, recogniser=length_as_words, out=tmp_path / "said",
                     on_progress=lambda *p: seen.append(p), **PLAIN)
    assert [(r.source, r.text, r.run) for r in found.rows] == [("model", t, r) for t in SHORT for r in (0, 1)] + [("teacher", t, None) for t in SHORT]
    assert seen == [("evaluation", n, 10) for n in range(1, 11)] and found.speed is None
    entries = list(csv.DictReader(open(tmp_path / "said" / "manifest.csv", encoding="utf-8")))
    assert [e["file"] for e in entries] == sorted(p.name for p in (tmp_path / "said").glob("*.wav")) and len(entries) == 4
    for r in found.rows[:2]:
        assert soundfile.info(tmp_path / "said" / r.file).duration == pytest.approx(r.seconds) and r.ratio == pytest.approx(r.seconds/2)
        again = tts.synthesise(r.text, own, seed=r.seed, denoise=False)
        assert again.duration == r.seconds and r.heard == length_as_words(again)
    assert {r.cosine > .5 for r in found.rows} == {True} and {r.nearest for r in found.rows} <= {own, "slt_1"}
    both = found.summary()["all"]
    assert both["teacher"]["ratios"] == [1., 1.] and both["model"]["clips"] == 4 and both["model"]["wer"]["value"] == sum(r.errors for r in found.rows[:4])/16
    content = json.loads(save_evaluation(found, tmp_path / "a.json").read_text())
    assert content["about"]["recogniser"] == "length_as_words" and content["about"]["gallery"] == ["slt_1", own] and len(content["rows"]) == 6
    assert any(own in line and "seed" in line for line in found.worst())
    assert len(found.plot().axes) == 4, "word errors, cosine, identification, lengths; no DNSMOS"
    assert found.table()[0].split()[:3] == ["voice", "source", "clips"] and "DNSMOS" not in found.table()[0]

def test_a_model_can_be_the_teacher(tts, own, tmp_path):
    first = evaluate(tts, SHORT[:1], [own], recogniser=None, out=tmp_path / "first", **PLAIN)
    second = evaluate(tts, None, [own], teacher=tmp_path / "first", recogniser=None, **PLAIN)
    assert [r.text for r in second.rows] == SHORT[:1]*2 and second.rows[0].ratio == 1. and first.rows[0].ratio is None
    assert second.rows[0].cosine == pytest.approx(second.rows[1].cosine, abs=1e-3)

def test_speed_is_measured_on_single_calls(tts, own):
    found = evaluate(tts, SHORT[:1], [own], recogniser=None, mos=False, denoise=False, timed=2)
    assert found.speed["calls"] == 2 and found.speed["rtf"]["low"] is not None and found.speed["tokens_per_second"]["value"] > 0
    assert "over 2 single calls" in found.speed_line() and found.about["machine"]["device"].startswith("cpu")

def test_silence_is_counted(tts, own, monkeypatch):
    class Mute(TTS):
        def synthesise(self, texts, *args, **options):
            if SHORT[1] in texts: raise MetaVoiceError("nothing was said")
            return super().synthesise(texts, *args, **options)
    monkeypatch.setattr(measures, "variant", lambda tts, **settings: Mute(tts.bundle))
    found = evaluate(tts, SHORT, [own], recogniser=length_as_words, **PLAIN)
    assert [r.seconds > 0 for r in found.rows] == [True, False] and found.summary()["all"]["model"]["silent"] == 1
    assert (found.rows[1].heard, found.rows[1].errors, found.rows[1].cosine) == ("", 5, 0.)

def test_mistakes_are_no_silence(tts, own, monkeypatch):
    def broken(*args, **options): raise OptionError("wrong")
    monkeypatch.setattr(TTS, "synthesise", broken)
    with pytest.raises(OptionError, match="wrong"): evaluate(tts, SHORT, [own], recogniser=None, **PLAIN)

def test_grid(tts, own, teacher, tmp_path):
    calls = []
    def listen(audio): calls.append(audio); return "the dog"
    found = evaluate_grid(tts, dict(temperature=[.2, 1.3], guidance=[1, 2]), voices=[own], teacher=teacher, recogniser=listen, mos=False, denoise=False)
    assert [(e.about["settings"]["temperature"], e.about["settings"]["guidance"]) for e in found] == [(.2, 1), (.2, 2), (1.3, 1), (1.3, 2)]
    assert len(calls) == 2 + 4*2, "recordings are heard once"
    table = grid_table(found, ["temperature", "guidance"])
    assert len(table) == 6 and table[1].split()[:2] == ["0.2", "1"] and table[-1].startswith("teacher")
    assert plot_grid(found, ["temperature"]).axes
    assert len(json.loads(save_evaluation(found, tmp_path / "a.json").read_text())["grid"]) == 4
    for bad, words in (({}, "no settings"), (dict(temperature=[]), "no values for 'temperature'"), (dict(temperature=[1, 11]), "temperature is 11")):
        with pytest.raises(OptionError, match=words): evaluate_grid(tts, bad, SHORT, [own])

def test_dnsmos_hears_noise():
    clip = load_audio(SAMPLES / "rms_2.ogg")
    clean, noisy = score_dnsmos(clip), score_dnsmos(Audio(clip.samples + .1*torch.randn(len(clip.samples), generator=torch.Generator().manual_seed(0)), clip.sample_rate))
    assert 1 < noisy["overall"] < clean["overall"] < 5 and noisy["background"] < clean["background"] - 1

@pytest.mark.parametrize("bad,kind,words", [(dict(texts=[]), TextError, "is empty"), (dict(texts=["Ω"]), TextError, "position 0"), (dict(voices=["nobody"]), AudioError, "no such file"),
    (dict(seeds=0), OptionError, "seeds is 0"), (dict(workers=0), OptionError, "workers is 0"), (dict(timed=-1), OptionError, "timed is -1"), (dict(recogniser="parrot"), OptionError, "unknown recogniser"),
    (dict(teacher="nowhere"), AudioError, "No such file"), (dict(out=ROOT), OutputError, "it is there already"), (dict(first_seed="x"), OptionError, "seed is 'x'")])
def test_refused_before_any_work(tts, bad, kind, words, monkeypatch):
    monkeypatch.setattr(measures, "carry_out", lambda *a, **k: pytest.fail("work was begun"))
    with pytest.raises(kind, match=words): evaluate(tts, **dict(texts=SHORT) | bad)

def test_extras_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(OptionError, match=r'pip install "metavoice\[evaluate\]"'): pick_recogniser("sphinx")

def test_every_extra_is_listed():
    from configparser import ConfigParser
    config = ConfigParser(delimiters=["="]); config.read(ROOT / "settings.ini", encoding="utf-8")
    extra, dev = (set(config["DEFAULT"][f"{k}_requirements"].split()) for k in ("evaluate", "dev"))
    assert {"pocketsphinx", "speechmos", "onnxruntime", "librosa", "requests", "jiwer", "matplotlib"} <= extra <= dev

def test_columns(): assert align_columns([["a", "bcd", "e"], ["fg", "h", "i"]]) == ["a   bcd  e", "fg  h    i"]


# at the shell

def run(capsys, *argv):
    try: code = main(["evaluate", *map(str, argv)])
    except SystemExit as e: code = e.code
    return (code, *capsys.readouterr())

def test_command(capsys, own, teacher, tmp_path):
    code, out, err = run(capsys, "--voices", own, "--teacher", teacher, "--recogniser", "none", "--no-mos", "--no-denoise", "--timed", 1, "--json", tmp_path / "a.json", "--plot", tmp_path / "a.png",
                         "--out", tmp_path / "said", "--temperature", .5, "--device", "cpu")
    assert code == 0 and "evaluation:" in err, err
    for word in ("2 sentences × 1 voice × 1 seed", "temperature 0.5", "model", "teacher", "real-time factor", "tokens/s", "clips without sound: 0"): assert word in out, out
    assert json.loads((tmp_path / "a.json").read_text())["about"]["settings"]["temperature"] == .5
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG" and len(list((tmp_path / "said").iterdir())) == 3

def test_command_with_a_grid(capsys, own, tmp_path):
    (tmp_path / "texts.txt").write_text(SHORT[0]+"\n")
    code, out, err = run(capsys, "--texts", tmp_path / "texts.txt", "--voices", own, "--recogniser", "none", "--no-mos", "--no-denoise", "-q", "--grid", "temperature=0.2,1", "--json", tmp_path / "g.json")
    assert (code, err) == (0, "") and [line.split()[0] for line in out.splitlines()[2:]] == ["temperature", "0.2", "1"]
    assert len(json.loads((tmp_path / "g.json").read_text())["grid"]) == 2

@pytest.mark.parametrize("argv,words", [(["--texts", "nowhere.txt"], "can't read the texts nowhere.txt: No such file"), (["--json", "a.txt"], "use .json"), (["--plot", "no/a.png"], "there is no folder no"),
    (["--grid", "temperature"], "as in temperature=0.5,0.7,1.0"), (["--grid", "temperature=1", "--grid", "temperature=2"], "one setting twice"), (["--grid", "speed=1"], "unknown setting 'speed'"),
    (["--grid", "temperature=1", "--out", "x"], "--out"), (["--seeds", "0"], "'0' isn't allowed"), (["--voices", "nobody.wav"], "no such file"), (["--recogniser", "parrot"], "unknown recogniser")])
def test_command_refuses(capsys, argv, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1) and words in err, err
    assert not list(tmp_path.iterdir())

@pytest.mark.skipif(os.name == "nt", reason="signals are sent differently there")
def test_interrupted_nothing_is_written(own, tmp_path):
    command = [sys.executable, "-c", "import sys; from metavoice.cli import main; sys.exit(main())", "evaluate", "--voices", own, "--seeds", "200", "--batch-size", "1", "--workers", "2", "--no-mos", "--no-denoise", "--timed", "0",
               "--json", str(tmp_path / "a.json"), "--out", str(tmp_path / "said")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
    try:
        until = time.monotonic() + 300
        while process.poll() is None and len(list(tmp_path.glob(".said-*/new/*.wav"))) < 2:
            assert time.monotonic() < until, "nothing was said in five minutes"
            time.sleep(.1)
        time.sleep(.3) # a pool that is interrupted while it is handed a sentence hangs, in Python 3.10
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "interrupted; nothing was written" in err and not out
    assert not list(tmp_path.iterdir())
