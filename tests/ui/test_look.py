"The player and its pictures, without a browser."
import io

import pytest
import torch

pytest.importorskip("anywidget", reason="anywidget isn't installed, which metavoice[ui] needs")

from metavoice.audio.sound import Audio, Word, load_audio
from metavoice.ui.look import Player, spectrogram_png, waveform_peaks, words_to_show


def test_downloads_in_all_formats(bella):
    player, sent = Player(), []

    def receive(about, buffers):
        sent.append((about["name"], about["type"], load_audio(io.BytesIO(buffers[0])).duration))

    player.send = receive
    player.show(bella, "x", name="heart-7")
    for format in ("wav", "flac", "ogg", "mp3", "exe", None):
        player.handle_message(player, dict(format=format), [])
    assert [s[0] for s in sent] == ["heart-7.wav", "heart-7.flac", "heart-7.ogg", "heart-7.mp3"]
    assert sent[3][1] == "audio/mpeg"
    assert all(s[2] == pytest.approx(bella.duration, abs=.1) for s in sent)


@pytest.mark.parametrize("samples", [0, 1, 5, 100])
def test_pictures_of_very_short_audio(samples):
    audio = Audio(torch.ones(samples)/2, 24000)
    assert len(waveform_peaks(audio)) in (0, 240) and (not samples or spectrogram_png(audio)[:4] == b"\x89PNG")


def timed(text, seconds=.5):
    "Return a silent audio whose words begin one after the other."
    words = [Word(word, n*seconds, (n + .8)*seconds) for n, word in enumerate(text.split())]
    return Audio(torch.zeros(round(1000*seconds*len(words))), 1000, words=words)


def test_captions_are_downloaded_beside_the_sound():
    player, sent = Player(), []
    player.send = lambda about, buffers: sent.append((about["name"], about["type"], buffers[0].decode()))
    player.show(timed("Ümit said: 2 < 3 & more."), name="ada-7")
    for format in ("srt", "vtt", "json"):
        player.handle_message(player, dict(format=format), [])
    (name, kind, srt), (other_name, other_kind, vtt) = sent
    assert (name, kind, other_name, other_kind) == ("ada-7.srt", "application/x-subrip", "ada-7.vtt", "text/vtt")
    assert srt == "1\n00:00:00,000 --> 00:00:03,400\nÜmit said: 2 < 3 & more.\n"
    assert vtt.startswith("WEBVTT\n") and "2 &lt; 3 &amp; more." in vtt


def test_words_are_shown_where_their_times_are_known(bella):
    player = Player()
    player.show(timed("One\ntwo"), text="One\ntwo")
    assert (player.words, player.captions) == ([["", "One", 0.0], ["\n", "two", .5]], ["srt", "vtt"])
    for audio in (bella, timed(""), None):
        player.show(audio)
        assert (player.words, player.captions) == ([], [])
    small = Player(small=True)
    small.show(timed("One two"))
    assert (small.words, small.captions) == ([], [])


@pytest.mark.parametrize("text,shown", [
    ("One two.\nThree", "One two.\nThree"),
    ("One two.\n\n\n\nThree", "One two.\n\nThree"),
    ("# One\n\n- two.\n- Three", "One\n\ntwo.\nThree"),
    ("One " + "<!-- -->"*200 + "\ntwo. Three", "One two. Three"),  # an unsaid part that is too long
    ("", "One two. Three"),
])
def test_line_breaks_come_from_the_text(text, shown):
    words = [Word(word, 0, 0) for word in shown.split()]
    assert "".join(before + word for before, word, _ in words_to_show(words, text)) == shown


def test_starts_never_decrease():
    words = [Word("a", 0, 1), Word("b", 2.00049, 3), Word("c", 1.5, 3), Word("d", 4, 5)]
    assert [start for *_, start in words_to_show(words)] == [0, 2.0, 2.0, 4]


def test_a_book_keeps_its_line_breaks():
    text = "\n\n".join(f"The old man walked to river {n}." for n in range(10_000))
    words = [Word(word, n, n) for n, word in enumerate(text.split())]
    shown = words_to_show(words, text)
    assert "".join(before + word for before, word, _ in shown) == text
