"Captions: valid files that FFmpeg reads, lines and times within their limits."
import json
import random

import pytest

from metavoice.audio.captions import (
    CUE_LINES,
    LINE_LENGTH,
    Cue,
    format_captions,
    format_time,
    is_captions,
    make_cues,
    save_captions,
)
from metavoice.audio.sound import Word
from metavoice.core.errors import OutputError


def timed(text, step=0.3, at=0.0):
    return [Word(word, at + n * step, at + n * step + 0.8 * step) for n, word in enumerate(text.split())]


@pytest.mark.parametrize("seed", range(8))
def test_cues_hold_every_word_once_within_the_limits(seed):
    rng, words, at = random.Random(seed), [], 0.0
    for _ in range(300):
        text = "".join(rng.choices("abcdefgh", k=rng.randint(1, 14))) + rng.choice(["", "", "", ",", ".", "?", ";"])
        words.append(Word(text, at, at + rng.uniform(0.02, 0.6)))
        at = words[-1].end + rng.choice([0, 0, 0.1, 2.0])
    cues = make_cues(words)
    assert [word for cue in cues for word in cue.words] == words
    assert " ".join(cue.text for cue in cues) == " ".join(word.text for word in words)
    for cue, following in zip(cues, [*cues[1:], None]):
        assert len(cue.lines) <= CUE_LINES and all(len(line) <= LINE_LENGTH for line in cue.lines)
        assert cue.start == cue.words[0].start and cue.end >= cue.words[-1].start
        assert following is None or cue.end <= following.start
        room = following is None or following.start - cue.start >= 1
        assert not room or cue.end - cue.start >= 1 - 1e-9


def test_a_cue_ends_with_its_sentence_or_a_clause():
    text = "The old man walked slowly down to the river, and the little dog ran ahead of him through the grass. He sat."
    cues = make_cues(timed(text))
    assert [cue.text.split()[-1] for cue in cues] == ["river,", "grass.", "He", "sat."][:2] + ["sat."]
    assert isinstance(cues[0], Cue) and cues[-1].text == "He sat."
    quoted = make_cues(timed('"No!" he said.'))
    assert [cue.text for cue in quoted] == ['"No!"', "he said."]


def test_a_word_longer_than_a_line_stays_whole():
    cues = make_cues(timed(f"See {'x' * 90} now."))
    assert "x" * 90 in [line for cue in cues for line in cue.lines]


@pytest.mark.parametrize("format", ["srt", "vtt"])
def test_ffmpeg_reads_the_captions(tmp_path, format):
    av = pytest.importorskip("av")
    words = timed("He paid <b>5 & 6</b> for it. Then he left; nobody knew --> why.", at=3599.5)
    path = save_captions(words, tmp_path / f"a.{format}")
    with av.open(str(path)) as media:
        packets = [packet for packet in media.demux() if packet.size]
        found = [(float(p.pts * p.time_base), float(p.duration * p.time_base), bytes(p)) for p in packets]
    cues = make_cues(words)
    assert len(found) == len(cues) == 2
    for (start, duration, text), cue in zip(found, cues):
        assert start == pytest.approx(cue.start, abs=2e-3) and start + duration == pytest.approx(cue.end, abs=2e-3)
        shown = text.decode().replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        assert shown.split() == cue.text.split()


def test_json_has_words_and_segments(tmp_path):
    words = timed("Café $5. Yes.")
    found = json.loads(save_captions(words, tmp_path / "a.json").read_text(encoding="utf-8"))
    assert found["words"][0] == dict(word="Café", start=0.0, end=0.24)
    assert [segment["text"] for segment in found["segments"]] == ["Café $5.", "Yes."]
    assert [segment["id"] for segment in found["segments"]] == [0, 1]


def test_no_words_and_wrong_endings(tmp_path):
    assert format_captions([], "vtt") == "WEBVTT\n"
    assert json.loads(format_captions([], "json")) == dict(words=[], segments=[])
    assert format_time(-1) == "00:00:00.000" and format_time(360000.0004, ",") == "100:00:00,000"
    with pytest.raises(OutputError, match=r"unknown ending '.txt'; use .srt, .vtt, .json"):
        save_captions([], tmp_path / "a.txt")
    with pytest.raises(OutputError, match="can't write"):
        save_captions([], tmp_path / "none" / "a.srt")
    (tmp_path / "a.srt").write_bytes(b"\xff\xfe notes")
    assert not is_captions(tmp_path / "a.srt") and not is_captions(tmp_path / "b.srt")
