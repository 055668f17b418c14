"Evaluations of nano: settings, seeds, results, grids, and what is refused."
import csv
import json
from pathlib import Path

import pytest
import soundfile

from metavoice.audio.sound import Audio, load_audio
from metavoice.core.errors import AudioError, MetaVoiceError, OptionError, OutputError, TextError
from metavoice.generate.tts import TTS
from metavoice.measure import evaluate as module
from metavoice.measure.evaluate import evaluate, evaluate_grid, make_items, resolve_settings
from metavoice.measure.quality import load_speaker_references
from metavoice.measure.recordings import write_recordings
from metavoice.measure.report import grid_table, plot_grid, save_evaluation

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "nbs" / "samples"
TEXTS = ["The dog slept.", "Where is the red book?"]
GALLERY = [SAMPLES / "slt_1.ogg"]
PLAIN = dict(mos=False, denoise=False, timed=0, settings=dict(takes=1), gallery=GALLERY)


def length_as_words(audio):
    return " ".join(["the"] * round(audio.duration))


@pytest.fixture(scope="module")
def teacher(tts, own, tmp_path_factory):
    "Recordings of two texts in the model's own first voice, each two seconds of its reference."
    audio = load_audio(tts.bundle.voices[own])
    rate = audio.sample_rate
    parts = [Audio(audio.samples[2 * n * rate:2 * (n + 1) * rate], rate) for n in range(2)]
    return write_recordings(tmp_path_factory.mktemp("teacher") / "new", ((own, t, a) for t, a in zip(TEXTS, parts)))


def test_every_sentence_has_its_own_seed(tts, own):
    items = make_items(load_speaker_references(tts, [own, *GALLERY]), TEXTS, range(3))
    assert len(items) == 12 == len({o.seed for o in items})
    alone = make_items(load_speaker_references(tts, [own]), TEXTS[1:], range(1, 2))
    assert [o.seed for o in alone] == [items[4].seed], "seeds depend on run, voice and text only"


def test_settings_leave_the_model_alone(tts):
    before = dict(tts.bundle.defaults)
    options = resolve_settings(tts.bundle, dict(temperature=.3, top_k=5)).sampling()
    assert options | dict(temperature=.3, top_k=5) == options and tts.bundle.defaults == before


@pytest.mark.parametrize("settings, message", [
    (dict(tempo=1), "unknown setting 'tempo'"),
    (dict(temperature=-1), "temperature is -1"),
    (dict(vocoder="organ"), "vocoder is 'organ'"),
    (dict(top_k=1.5), "top_k is 1.5"),
])
def test_wrong_settings(tts, settings, message):
    with pytest.raises(OptionError, match=message):
        resolve_settings(tts.bundle, settings)


@pytest.fixture(scope="module")
def evaluated(tts, own, teacher, tmp_path_factory):
    "An evaluation, the folder of its clips, and the progress that it reported."
    seen, out = [], tmp_path_factory.mktemp("evaluation") / "said"
    found = evaluate(
        tts, voices=[own], teacher=teacher, seeds=2, recogniser=length_as_words, out=out,
        on_progress=lambda *progress: seen.append(progress), **PLAIN,
    )
    return found, out, seen


def test_results_and_progress(evaluated):
    found, _, seen = evaluated
    expected = [("model", t, run) for t in TEXTS for run in (0, 1)] + [("teacher", t, None) for t in TEXTS]
    assert [(r.source, r.text, r.run) for r in found.rows] == expected
    assert seen == [("evaluation", n, 10) for n in range(1, 11)] and found.speed is None


def test_clips_are_kept(evaluated):
    found, out, _ = evaluated
    entries = list(csv.DictReader(open(out / "manifest.csv", encoding="utf-8")))
    assert [e["file"] for e in entries] == sorted(p.name for p in out.glob("*.wav")) and len(entries) == 4
    for r in found.rows[:2]:
        assert soundfile.info(out / r.file).duration == pytest.approx(r.seconds)
        assert r.ratio == pytest.approx(r.seconds / 2)


def test_seed_reproduces_a_clip(evaluated, tts, own):
    for r in evaluated[0].rows[:2]:
        again = tts.synthesise(r.text, own, seed=r.seed, denoise=False, takes=1)
        assert again.duration == r.seconds and r.heard == dict(length_as_words=length_as_words(again))


def test_similarity_and_summary(evaluated, own):
    found, _, _ = evaluated
    assert all(r.cosine > .5 for r in found.rows) and {r.nearest for r in found.rows} <= {own, "slt_1"}
    both = found.summary()["all"]
    assert both["teacher"]["ratios"] == [1., 1.] and both["model"]["clips"] == 4
    assert both["model"]["wer:length_as_words"]["value"] == sum(sum(r.errors.values()) for r in found.rows[:4]) / 16


def test_report_of_an_evaluation(evaluated, own, tmp_path):
    found, _, _ = evaluated
    content = json.loads(save_evaluation(found, tmp_path / "a.json").read_text())
    about = content["about"]
    assert about["recognisers"] == dict(length_as_words="length_as_words") and about["gallery"] == ["slt_1", own]
    assert len(content["rows"]) == 6
    assert any(own in line and "seed" in line for line in found.worst())
    assert len(found.plot().axes) == 5, "word errors, cosine, identification, pitch, lengths; no DNSMOS"
    assert found.table()[0].split()[:3] == ["voice", "source", "clips"] and "DNSMOS" not in found.table()[0]


def test_output_of_a_model_as_the_teacher(tts, own, tmp_path):
    first = evaluate(tts, TEXTS[:1], [own], recogniser=None, out=tmp_path / "first", **PLAIN)
    second = evaluate(tts, None, [own], teacher=tmp_path / "first", recogniser=None, **PLAIN)
    assert [r.text for r in second.rows] == TEXTS[:1] * 2
    assert second.rows[0].ratio == 1. and first.rows[0].ratio is None
    assert second.rows[0].cosine == pytest.approx(second.rows[1].cosine, abs=1e-3)


def test_speed_of_single_calls(tts, own):
    found = evaluate(tts, TEXTS[:1], [own], recogniser=None, **PLAIN | dict(timed=2))
    assert found.speed["calls"] == 2 and found.speed["rtf"]["low"] is not None
    assert found.speed["tokens_per_second"]["value"] > 0
    assert found.speed["cpu"]["value"] > 0 and found.speed["first_audio"]["value"] > 0
    assert sum(found.speed["cpu_by_stage"].values()) == pytest.approx(found.speed["cpu"]["value"])
    lines = "\n".join(found.speed_lines())
    assert all(part in lines for part in ("over 2 single calls", "CPU seconds by stage: first stage", "MB on disk"))
    assert found.about["machine"]["device"].startswith("cpu") and 5 < found.about["megabytes"] < 100


def test_short_texts_and_two_recognisers(tts, own):
    def deaf(audio):
        return ""

    found = evaluate(
        tts, TEXTS[:1], [own], recogniser=[deaf, length_as_words], short=["Good morning."], out=None, **PLAIN
    )
    assert [r.text for r in found.rows] == TEXTS[:1] and [r.text for r in found.short] == ["Good morning."]
    assert list(found.rows[0].errors) == ["deaf", "length_as_words"]
    missed = found.summary()["short"]["missed"]
    assert [missed[name]["value"] for name in ("deaf", "length_as_words")] == [1., 1.]
    assert "heard as '' and 'the" in found.worst()[0]


def test_missing_sound_is_counted(tts, own):
    class SometimesSilent(TTS):
        def synthesise(self, texts, *args, **options):
            if TEXTS[1] in texts:
                raise MetaVoiceError("nothing was said")
            return super().synthesise(texts, *args, **options)

    found = evaluate(SometimesSilent(tts.bundle), TEXTS, [own], recogniser=length_as_words, **PLAIN)
    assert [r.seconds > 0 for r in found.rows] == [True, False] and found.summary()["all"]["model"]["silent"] == 1
    assert (found.rows[1].heard, found.rows[1].errors, found.rows[1].cosine) == (
        dict(length_as_words=""), dict(length_as_words=5), 0.
    )


def test_other_errors_are_raised(tts, own, monkeypatch):
    def broken(*args, **options):
        raise OptionError("wrong")

    monkeypatch.setattr(TTS, "synthesise", broken)
    with pytest.raises(OptionError, match="wrong"):
        evaluate(tts, TEXTS, [own], recogniser=None, **PLAIN)


def test_grid(tts, own, teacher, tmp_path):
    calls = []

    def listen(audio):
        calls.append(audio)
        return "the dog"

    grid = dict(temperature=[.2, 1.3], guidance=[1, 2])
    found = evaluate_grid(tts, grid, voices=[own], teacher=teacher, recogniser=listen, **PLAIN)
    settings = [e.about["settings"] for e in found]
    assert [(o["temperature"], o["guidance"]) for o in settings] == [(.2, 1), (.2, 2), (1.3, 1), (1.3, 2)]
    assert len(calls) == 2 + 4 * 2, "recordings are recognised once"
    table = grid_table(found, ["temperature", "guidance"])
    assert len(table) == 6 and table[1].split()[:2] == ["0.2", "1"] and table[-1].startswith("teacher")
    assert plot_grid(found, ["temperature"]).axes
    assert len(json.loads(save_evaluation(found, tmp_path / "a.json").read_text())["grid"]) == 4


@pytest.mark.parametrize("grid, message", [
    ({}, "no settings"),
    (dict(temperature=[]), "no values for 'temperature'"),
    (dict(temperature=[1, 11]), "temperature is 11"),
])
def test_wrong_grids(tts, own, grid, message):
    with pytest.raises(OptionError, match=message):
        evaluate_grid(tts, grid, TEXTS, [own])


@pytest.mark.parametrize("bad, kind, message", [
    (dict(texts=[]), TextError, "is empty"),
    (dict(texts=["你"]), TextError, "nothing to say"),
    (dict(voices=["nobody"]), AudioError, "no such file"),
    (dict(seeds=0), OptionError, "seeds is 0"),
    (dict(workers=0), OptionError, "workers is 0"),
    (dict(timed=-1), OptionError, "timed is -1"),
    (dict(recogniser="parrot"), OptionError, "unknown recogniser"),
    (dict(recogniser="sphinx,sphinx"), OptionError, "two recognisers are called 'sphinx'"),
    (dict(short=["One two three four."]), TextError, "more than three words"),
    (dict(short=True, recogniser=None), OptionError, "need a recogniser"),
    (dict(teacher="nowhere"), AudioError, "No such file"),
    (dict(out=ROOT), OutputError, "it is there already"),
    (dict(first_seed="x"), OptionError, "seed is 'x'"),
])
def test_refused_before_any_work(tts, bad, kind, message, monkeypatch):
    monkeypatch.setattr(module, "run_evaluation", lambda *a, **k: pytest.fail("work was begun"))
    with pytest.raises(kind, match=message):
        evaluate(tts, **dict(texts=TEXTS, voices=GALLERY, gallery=GALLERY) | bad)
