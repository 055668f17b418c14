"Results and takes of a page, and the memory of dropped ones, without a browser."
import gc
import weakref

import pytest
import torch

pytest.importorskip("anywidget", reason="anywidget isn't installed, which metavoice[ui] needs")

from metavoice.audio.sound import Audio
from metavoice.ui.history import HistoryEntry, HistoryPanel


def result(seed, seconds=1.0, text="The dog slept.", voice="af_heart", **options):
    "Return a result of silence."
    return HistoryEntry(text, voice, dict(seed=seed, **options), Audio(torch.zeros(round(100*seconds)), 100), 1.0)


def labels(history):
    "Return the texts of the rows."
    return [row.description for row in history.children]


def test_rows_of_takes_are_numbered_when_there_are_two():
    history = HistoryPanel(None)
    history.add(result(17))
    history.add(result(17, voice="bf_emma"))
    assert labels(history) == ["1.0 s · bf_emma · The dog slept.", "1.0 s · af_heart · The dog slept."]
    history.add(result(18, 2.5))
    assert labels(history) == [
        "Take 2 · seed 18 · 2.5 s · af_heart · The dog slept.",
        "1.0 s · bf_emma · The dog slept.",
        "Take 1 · seed 17 · 1.0 s · af_heart · The dog slept.",
    ]


@pytest.mark.parametrize("other", [dict(text="The cat slept."), dict(voice="bf_emma"), dict(speed=1.5)])
def test_other_texts_voices_and_settings_are_no_takes(other):
    history, first = HistoryPanel(None), result(17)
    history.add(first)
    history.add(result(18, **other))
    assert history.takes(first) == [first] and history.next_seed(first) == 18
    assert not any("Take" in label for label in labels(history))


def test_the_next_seed_is_one_that_no_take_has():
    history, entries = HistoryPanel(None), [result(seed) for seed in (17, 18, 20)]
    for entry in entries:
        history.add(entry)
    assert [history.next_seed(entry) for entry in entries] == [19, 19, 21]


def test_numbers_continue_after_a_take_was_dropped():
    history = HistoryPanel(None, most=2)
    for seed in range(5):
        history.add(result(seed))
    assert [entry.take for entry in history.entries] == [5, 4] and "Take 4 · seed 3" in labels(history)[1]


@pytest.mark.parametrize("seconds,kept", [(10, 10), (200, 4), (100, 9)])
def test_a_history_is_bounded_in_seconds_but_keeps_the_latest_four(seconds, kept):
    history = HistoryPanel(None, most=10)
    for seed in range(12):
        history.add(result(seed, seconds))
    assert len(history.entries) == len(history.children) == kept
    assert history.entries[0].options["seed"] == 11


def test_the_memory_of_dropped_results_is_free():
    sounds, history = [], HistoryPanel(lambda entry: None, most=2)
    for seed in range(5):
        entry = result(seed)
        sounds.append(weakref.ref(entry.audio))
        history.add(entry)
    del entry
    gc.collect()
    assert [sound() is not None for sound in sounds] == [False, False, False, True, True]
