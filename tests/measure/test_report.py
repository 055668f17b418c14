"Summary statistics and tables."
import json
from types import SimpleNamespace

import numpy as np
import pytest

from metavoice.measure.report import (
    ClipResult,
    Evaluation,
    align_columns,
    metric_table,
    save_evaluation,
    summarise_clips,
    summarise_short,
    wer_std,
)


def make_result(**changes):
    fields = dict(
        source="model", voice="a", text="x", run=0, seed=1, seconds=2., ratio=1., words=4, cosine=.8,
        nearest="a", pitch=100., semitones=1., overall=3., signal=3., background=3.,
    )
    errors = changes.pop("errors", 1)
    errors = errors if isinstance(errors, dict) else dict(toy=errors)
    return ClipResult(**fields | changes, errors=errors, heard={name: "" for name in errors})


def test_wer_std_over_runs():
    results = [make_result(run=r, errors=e) for r, e in ((0, 0), (0, 2), (1, 4), (1, 4))]
    assert wer_std(results, "toy") == pytest.approx(np.std([.25, 1.], ddof=1))
    assert wer_std(results[:2], "toy") is None


def test_summary():
    results = [
        make_result(),
        make_result(text="y", nearest="b", ratio=.5, seconds=0., errors=3),
        make_result(text="z", ratio=1.7),
        make_result(text="u", ratio=1.6),
    ]
    s = summarise_clips(results, True)
    values = [s[k]["value"] for k in ("wer:toy", "identified", "within")]
    assert (s["clips"], s["silent"], *values, s["ratios"]) == (4, 1, 6 / 16, .75, .25, [.5, 1.7])


def test_no_identification_in_a_gallery_of_one():
    assert "identified" not in summarise_clips([make_result()], False)


def test_no_summary_without_results():
    assert summarise_clips([], True) is None


def test_a_column_for_each_recogniser():
    summary = summarise_clips([make_result(errors=dict(sphinx=2, whisper=1))], False)
    assert (summary["wer:sphinx"]["value"], summary["wer:whisper"]["value"]) == (.5, .25)
    table = metric_table(["name"], [(["x"], summary)])
    assert table[0].startswith("name  WER % sphinx  WER % whisper  cosine")
    assert table[1].split()[1:3] == ["50.0", "25.0"]


def test_short_texts_without_their_words():
    counts = [(1, 0), (1, 1), (2, 1), (2, 2), (3, 4)]  # words, errors
    short = [make_result(text=str(n), words=w, errors=e) for n, (w, e) in enumerate(counts)]
    found = summarise_short(short)
    assert found["clips"] == 5 and found["missed"]["toy"]["value"] == 3 / 5
    evaluation = Evaluation(dict(gallery=["a"], voices=["a"]), [make_result()], None, short)
    assert evaluation.short_line().startswith("texts of one to three words without their words, of 5 clips: toy 60.0 (")
    assert evaluation.summary()["short"] == found and len(evaluation.to_dict()["short"]) == 5
    assert summarise_short([]) is None and not Evaluation({}, [], None).short_line()


def test_aligned_columns():
    assert align_columns([["a", "bcd", "e"], ["fg", "h", "i"]]) == ["a   bcd  e", "fg  h    i"]


def test_results_are_written_whatever_they_hold(tmp_path):
    odd = dict(rtf=float("nan"), low=-float("inf"), voice="caf\udce9.wav", heard="a\u2028\n", rows=[(1, float("inf"))])
    path = save_evaluation(SimpleNamespace(to_dict=lambda: odd), tmp_path / "a.json")
    found = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert found.pop("generator").startswith("made by metavoice ")
    assert found == odd | dict(rtf=None, low=None, rows=[[1, None]])
