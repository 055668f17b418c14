"Sound: files there and back, bad input, the `Audio` class, and what can't be written."

import io
import os

import numpy as np
import pytest
import soundfile
import torch

from metavoice.audio.encode import AUDIO_FORMATS
from metavoice.audio.sound import Audio, AudioLimits, load_audio
from metavoice.core.errors import AudioError, OutputError

RATE = 16000


def write_file(path, x, rate=RATE, **options):
    soundfile.write(path, x, rate, **options)
    return path


def assert_refused(source, *words, **options):
    with pytest.raises(AudioError) as e:
        load_audio(source, **options)
    message = str(e.value)
    assert '\n' not in message and all(word in message for word in words), message


# reading


@pytest.mark.parametrize("suffix", AUDIO_FORMATS)
def test_formats_there_and_back(tmp_path, tone, suffix):
    path = Audio(torch.tensor(tone()), RATE).save(tmp_path / f"a.{suffix}")
    back = load_audio(path)
    assert back.sample_rate == RATE and abs(back.duration - 1) < 0.1
    assert load_audio(path.read_bytes()) == back
    with open(path, 'rb') as file:
        assert load_audio(file) == back
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_stereo_8khz_mp3(tmp_path, tone):
    x = tone(2.0, 8000)
    audio = load_audio(write_file(tmp_path / "a.mp3", np.stack([x, x], 1), 8000), 24000)
    assert audio.sample_rate == 24000 and abs(audio.duration - 2) < 0.2
    middle = audio.samples[12000:36000]
    assert abs(middle.square().mean().sqrt().item() - 0.4 / 2**0.5) < 0.03


def test_24_channels_become_one(tmp_path):
    many = np.random.default_rng(0).normal(0, 0.1, (5000, 24)).astype('float32')
    audio = load_audio(write_file(tmp_path / "a.wav", many, subtype='FLOAT'))
    assert audio.samples.shape == (5000,)
    np.testing.assert_allclose(audio.samples.numpy(), many.mean(1), atol=1e-6)


def test_long_ogg(tmp_path, tone):
    "libsndfile's Vorbis encoder overflows its stack when it is given minutes at once."
    assert load_audio(Audio(torch.tensor(tone(180.0)), RATE).save(tmp_path / "a.ogg")).duration == 180


# what can't be read


def test_missing_file(tmp_path):
    assert_refused(tmp_path / "none.wav", "none.wav", "no such file")


def test_directory(tmp_path):
    assert_refused(str(tmp_path), str(tmp_path), "directory")


def test_nul_in_a_name():
    assert_refused("a\0.wav", "null")


def test_text_file(tmp_path):
    (tmp_path / "a.wav").write_text("This is a letter, not a sound.\n" * 99)
    assert_refused(tmp_path / "a.wav", "a.wav", "isn't audio", "wav, flac, ogg, opus, mp3")


def test_empty_file(tmp_path):
    (tmp_path / "a.wav").touch()
    assert_refused(tmp_path / "a.wav", "a.wav", "empty")
    assert_refused(b'', "empty")


def test_no_samples(tmp_path, tone):
    assert_refused(write_file(tmp_path / "a.wav", tone(0)), "no samples")


def test_wrong_type():
    assert_refused(3, "int", "path")
    assert_refused(io.StringIO("abc"), "StringIO", "binary")


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason="root may read everything")
def test_forbidden_file(tmp_path, tone):
    write_file(tmp_path / "a.wav", tone()).chmod(0)
    assert_refused(tmp_path / "a.wav", "Permission denied")


@pytest.mark.parametrize("suffix", AUDIO_FORMATS)
def test_only_a_header(tmp_path, tone, suffix):
    assert_refused(write_file(tmp_path / f"a.{suffix}", tone()).read_bytes()[:36])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite(tmp_path, tone, value):
    x = tone()
    x[8000] = value
    assert_refused(write_file(tmp_path / "a.wav", x, subtype='FLOAT'), "NaN or infinite", "0.500 s")


@pytest.mark.parametrize(
    "limits, words",
    [
        (AudioLimits(channels=1), "it has 2 channels; up to 1"),
        (AudioLimits(0.5), "it is longer than 0.5 s"),
        (AudioLimits(rates=(22_050, 48_000)), "its sample rate is 16000 Hz; 22050 to 48000 Hz"),
    ],
)
def test_limits_of_untrusted_files(tmp_path, tone, limits, words):
    path = write_file(tmp_path / "a.flac", np.stack([tone()] * 2, 1))
    assert_refused(path, "can't use", words, limits=limits)
    assert load_audio(path, limits=AudioLimits()).duration == 1


def test_a_small_file_of_long_silence(tmp_path):
    path = write_file(tmp_path / "a.flac", np.zeros(600 * RATE, 'float32'))
    assert path.stat().st_size < 100_000
    assert_refused(path, "it is longer than 120 s", limits=AudioLimits())


# the class


def test_audio_class(tone):
    with pytest.raises(AudioError, match=r"\(2, 5\)"):
        Audio(torch.zeros(2, 5), RATE)
    with pytest.raises(AudioError, match="-1 Hz"):
        Audio(torch.zeros(5), -1)
    assert Audio(np.zeros(5), RATE).samples.dtype == torch.float32
    assert 'audio/mpeg' in Audio(torch.tensor(tone(rate=7000)), 7000)._repr_html_()
    assert Audio(torch.zeros(0), RATE)._repr_html_() == '<i>no sound</i>'
    assert (
        Audio(torch.zeros(RATE), RATE) != Audio(torch.zeros(RATE), RATE + 1) and Audio(torch.zeros(1), RATE) != 'audio'
    )


def test_player_without_matplotlib(tone, monkeypatch):
    def missing(self):
        raise ImportError

    monkeypatch.setattr(Audio, "show", missing)
    html = Audio(torch.tensor(tone()), RATE)._repr_html_()
    assert html.startswith('<audio controls src="data:audio/mpeg;base64,') and '<img' not in html


# writing


@pytest.mark.parametrize(
    "name, words",
    [("a.doc", "unknown ending"), ("a", "unknown ending"), ("no/a.wav", "No such file"), ("d.wav", "directory")],
)
def test_paths_that_cannot_be_written(tmp_path, tone, name, words):
    (tmp_path / "d.wav").mkdir()
    with pytest.raises(OutputError, match=words) as e:
        Audio(torch.tensor(tone()), RATE).save(tmp_path / name)
    assert name in str(e.value) and [p.name for p in tmp_path.iterdir()] == ["d.wav"]


def test_samples_that_cannot_be_written(tmp_path, tone):
    with pytest.raises(OutputError, match="no samples"):
        Audio(torch.zeros(0), RATE).save(tmp_path / "a.wav")
    with pytest.raises(OutputError, match="NaN"):
        Audio(torch.full((9,), torch.nan), RATE).save(tmp_path / "a.wav")
    with pytest.raises(OutputError, match="7000 Hz"):
        Audio(torch.tensor(tone()), 7000).save(tmp_path / "a.mp3")
    assert not list(tmp_path.iterdir())


def test_wav_clips_rather_than_wraps(tmp_path):
    back = load_audio(Audio(torch.linspace(-2, 2, 999), RATE).save(tmp_path / "a.wav")).samples
    assert back.min() < -0.999 and back.max() > 0.999 and (back.diff() >= 0).all()


@pytest.mark.parametrize("suffix", AUDIO_FORMATS)
def test_bytes_equal_the_saved_file(tmp_path, tone, suffix):
    audio = Audio(torch.tensor(tone()), RATE)
    saved, data = audio.save(tmp_path / f"a.{suffix}").read_bytes(), audio.to_bytes(suffix)
    assert load_audio(saved) == load_audio(data) and (suffix == "ogg" or saved == data)
