"The player and its pictures, without a browser."
import io

import pytest
import torch

pytest.importorskip("anywidget", reason="anywidget isn't installed, which metavoice[ui] needs")

from metavoice.audio.sound import Audio, load_audio
from metavoice.ui.look import Player, spectrogram_png, waveform_peaks


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
