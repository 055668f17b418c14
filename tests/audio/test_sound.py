"Audio: golden front end of the speaker encoder, every format, every kind of bad input."
import io, os

import numpy as np
import pytest
import soundfile
import torch

from metavoice.audio.features import log_mel, loudness, mel_spectrogram, normalise_loudness, resample, trim_silence
from metavoice.audio.encode import AUDIO_FORMATS
from metavoice.audio.sound import Audio, check_reference, load_audio
from metavoice.core.errors import AudioError, OptionError, OutputError

RATE = 16000


def tone(seconds=1., rate=RATE, hz=300.): return .4*np.sin(2*np.pi*hz*np.arange(round(seconds*rate))/rate).astype('float32')

def written(path, x, rate=RATE, **kw):
    soundfile.write(path, x, rate, **kw)
    return path

def refused(source, *words):
    with pytest.raises(AudioError) as e: load_audio(source)
    message = str(e.value)
    assert '\n' not in message and all(w in message for w in words), message


# ---- golden
@pytest.mark.parametrize("i", range(4))
def test_golden_trim_and_mel(golden, expected, i):
    x = trim_silence(load_audio(golden/f"voice{i}.wav", RATE).samples)
    assert len(x) == expected[f"spk_trim{i}"]
    mel, want = mel_spectrogram(x).numpy(), expected[f"spk_mel{i}"]
    assert mel.shape == want.shape and np.abs(mel-want).max() <= 1e-3*np.abs(want).max()
    np.testing.assert_allclose(mel, want, rtol=1e-3, atol=1e-6*want.max())

def test_real_recording(speech):
    audio = load_audio(speech/"bria.mp3", 24000)
    assert 40 < audio.duration < 50 and audio.sample_rate == 24000 and -40 < loudness(audio.samples, 24000) < -5


# ---- what can be read
@pytest.mark.parametrize("suffix", AUDIO_FORMATS)
def test_formats_there_and_back(tmp_path, suffix):
    path = Audio(torch.tensor(tone()), RATE).save(tmp_path/f"a.{suffix}")
    back = load_audio(path)
    assert back.sample_rate == RATE and abs(back.duration-1) < .1
    assert load_audio(path.read_bytes()) == back
    with open(path, 'rb') as f: assert load_audio(f) == back
    assert [p.name for p in tmp_path.iterdir()] == [path.name]

def test_stereo_8khz_mp3(tmp_path):
    x = tone(2., 8000)
    audio = load_audio(written(tmp_path/"a.mp3", np.stack([x, x], 1), 8000), 24000)
    assert audio.sample_rate == 24000 and abs(audio.duration-2) < .2
    middle = audio.samples[12000:36000]
    assert abs(middle.square().mean().sqrt().item() - .4/2**.5) < .03

def test_24_channels_become_one(tmp_path):
    many = np.random.default_rng(0).normal(0, .1, (5000, 24)).astype('float32')
    audio = load_audio(written(tmp_path/"a.wav", many, subtype='FLOAT'))
    assert audio.samples.shape == (5000,)
    np.testing.assert_allclose(audio.samples.numpy(), many.mean(1), atol=1e-6)

def test_wav_of_unknown_length(tmp_path):
    "ffmpeg in a pipe writes all ones where the length belongs."
    data = bytearray(written(tmp_path/"a.wav", tone()).read_bytes())
    at = data.index(b'data')
    data[4:8] = data[at+4:at+8] = b'\xff'*4
    assert load_audio(bytes(data)).duration == 1

def test_long_ogg(tmp_path):
    "libsndfile's Vorbis overflows its stack when given minutes at once."
    assert load_audio(Audio(torch.tensor(tone(180.)), RATE).save(tmp_path/"a.ogg")).duration == 180


# ---- what can't
def test_missing(tmp_path): refused(tmp_path/"none.wav", "none.wav", "no such file")
def test_directory(tmp_path): refused(str(tmp_path), str(tmp_path), "directory")
def test_nul_in_name(): refused("a\0.wav", "null")

def test_text_file(tmp_path):
    (tmp_path/"a.wav").write_text("This is a letter, not a sound.\n"*99)
    refused(tmp_path/"a.wav", "a.wav", "isn't audio", "wav, flac, ogg or mp3")

def test_empty(tmp_path):
    (tmp_path/"a.wav").touch()
    refused(tmp_path/"a.wav", "a.wav", "empty")
    refused(b'', "empty")

def test_no_samples(tmp_path): refused(written(tmp_path/"a.wav", tone(0)), "no samples")
def test_wrong_type(): refused(3, "int", "path"); refused(io.StringIO("abc"), "StringIO", "binary")

@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason="root may read everything")
def test_forbidden(tmp_path):
    (written(tmp_path/"a.wav", tone())).chmod(0)
    refused(tmp_path/"a.wav", "Permission denied")

@pytest.mark.parametrize("suffix", AUDIO_FORMATS)
@pytest.mark.parametrize("keep", [.5, .8])
def test_truncated(tmp_path, suffix, keep):
    whole = written(tmp_path/f"a.{suffix}", np.random.default_rng(0).normal(0, .1, 3*RATE)).read_bytes()
    (tmp_path/f"b.{suffix}").write_bytes(whole[:int(keep*len(whole))])
    refused(tmp_path/f"b.{suffix}", f"b.{suffix}", "broken" if suffix == 'flac' else "truncated")

@pytest.mark.parametrize("suffix", AUDIO_FORMATS)
def test_only_a_header(tmp_path, suffix): refused(written(tmp_path/f"a.{suffix}", tone()).read_bytes()[:36])

@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(tmp_path, value):
    x = tone(); x[8000] = value
    refused(written(tmp_path/"a.wav", x, subtype='FLOAT'), "NaN or infinite", "0.500 s")

def test_reference():
    good = Audio(torch.tensor(tone(4.)), RATE)
    assert check_reference(good) is good
    for audio,min_seconds,words in [(Audio(good.samples[:RATE//2], RATE), 1, "0.50 s long; at least 1 s"),
                                (good, 30, "4.00 s long; at least 30 s"),
                                (Audio(torch.zeros(4*RATE), RATE), 3, "silent"),
                                (Audio(torch.full((4*RATE,), .3), RATE), 3, "silent"), # a direct current isn't heard
                                (Audio(torch.full((4*RATE,), torch.nan), RATE), 3, "NaN"),
                                (Audio(torch.zeros(0), RATE), 3, "0.00 s long")]:
        with pytest.raises(AudioError, match=words): check_reference(audio, min_seconds)

def test_audio_class():
    with pytest.raises(AudioError, match=r"\(2, 5\)"): Audio(torch.zeros(2,5), RATE)
    with pytest.raises(AudioError, match="-1 Hz"): Audio(torch.zeros(5), -1)
    assert Audio(np.zeros(5), RATE).samples.dtype == torch.float32
    assert 'audio/mpeg' in Audio(torch.tensor(tone(rate=7000)), 7000)._repr_html_()
    assert Audio(torch.zeros(0), RATE)._repr_html_() == '<i>no sound</i>'


# ---- writing
@pytest.mark.parametrize("name, words", [("a.doc", "unknown ending"), ("a", "unknown ending"), ("no/a.wav", "No such file"), ("d.wav", "directory")])
def test_cannot_write(tmp_path, name, words):
    (tmp_path/"d.wav").mkdir()
    with pytest.raises(OutputError, match=words) as e: Audio(torch.tensor(tone()), RATE).save(tmp_path/name)
    assert name in str(e.value) and [p.name for p in tmp_path.iterdir()] == ["d.wav"]

def test_write_refuses_rubbish(tmp_path):
    with pytest.raises(OutputError, match="no samples"): Audio(torch.zeros(0), RATE).save(tmp_path/"a.wav")
    with pytest.raises(OutputError, match="NaN"): Audio(torch.full((9,), torch.nan), RATE).save(tmp_path/"a.wav")
    with pytest.raises(OutputError, match="7000 Hz"): Audio(torch.tensor(tone()), 7000).save(tmp_path/"a.mp3")
    assert not list(tmp_path.iterdir())

def test_wav_clips_rather_than_wraps(tmp_path):
    back = load_audio(Audio(torch.linspace(-2, 2, 999), RATE).save(tmp_path/"a.wav")).samples
    assert back.min() < -.999 and back.max() > .999 and (back.diff() >= 0).all()


# ---- signal
@pytest.mark.parametrize("a, b", [(44100,24000), (48000,16000), (8000,24000), (44101,16000), (192000,8000)])
def test_resample_keeps_a_tone(a, b):
    got, want = resample(torch.tensor(tone(1., a)), a, b), torch.tensor(tone(1., b))
    assert len(got) == len(want) and (got-want)[b//20:-b//20].abs().max() < .01

def test_resample_refuses():
    for rate in (0, -5, 2.5):
        with pytest.raises(OptionError, match="sample rate"): resample(torch.zeros(9), rate, RATE)

def test_loudness():
    x = torch.tensor(tone(3., 48000, 997.)/.4)
    assert abs(loudness(x, 48000) + 3.01) < .1 and abs(loudness(x/10, 48000) + 23.01) < .1
    assert abs(loudness(x[:4800]/10, 48000) + 23.01) < .3 # 0.1 s
    assert loudness(torch.zeros(9), 48000) == loudness(torch.zeros(0), 48000) == -torch.inf

def test_to_loudness(golden):
    for i in range(4):
        x = load_audio(golden/f"voice{i}.wav").samples
        for level in (.05, 1, 20):
            y = normalise_loudness(x*level, RATE)
            assert abs(loudness(y, RATE) + 14) < .6 and y.abs().max() <= 1

def test_to_loudness_silence_and_stubs():
    for x in (torch.zeros(0), torch.zeros(5), torch.zeros(RATE)): assert torch.equal(normalise_loudness(x, RATE), x)
    assert normalise_loudness(torch.tensor(tone(.05)), RATE).isfinite().all()

def test_mel_shapes_and_gradient():
    with torch.inference_mode(): log_mel(torch.zeros(2, 4800), 24000, 512, 240, 64)
    x = torch.randn(2, 4800, requires_grad=True)
    mel = log_mel(x, 24000, 512, 240, 64, centre=False)
    assert mel.shape == (2, 64, 20)
    mel.sum().backward(); assert x.grad.isfinite().all()
