"Summary statistics and tables."
import numpy as np
import pytest

from metavoice.measure.report import ClipResult, align_columns, summarise_clips, wer_std


def make_result(**changes):
    fields = dict(
        source="model", voice="a", text="x", run=0, seed=1, seconds=2., ratio=1., words=4, errors=1, heard="",
        cosine=.8, nearest="a", overall=3., signal=3., background=3.,
    )
    return ClipResult(**fields | changes)


def test_wer_std_over_runs():
    results = [make_result(run=r, errors=e) for r, e in ((0, 0), (0, 2), (1, 4), (1, 4))]
    assert wer_std(results) == pytest.approx(np.std([.25, 1.], ddof=1))
    assert wer_std(results[:2]) is None


def test_summary():
    results = [
        make_result(),
        make_result(text="y", nearest="b", ratio=.5, seconds=0., errors=3),
        make_result(text="z", ratio=1.7),
        make_result(text="u", ratio=1.6),
    ]
    s = summarise_clips(results, True)
    values = [s[k]["value"] for k in ("wer", "identified", "within")]
    assert (s["clips"], s["silent"], *values, s["ratios"]) == (4, 1, 6 / 16, .75, .5, [.5, 1.7])


def test_no_identification_in_a_gallery_of_one():
    assert "identified" not in summarise_clips([make_result()], False)


def test_no_summary_without_results():
    assert summarise_clips([], True) is None


def test_aligned_columns():
    assert align_columns([["a", "bcd", "e"], ["fg", "h", "i"]]) == ["a   bcd  e", "fg  h    i"]
