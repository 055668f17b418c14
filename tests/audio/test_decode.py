"Loading: every format by its content, incomplete files, channels, rates, limits, spans, and mutated files."

import io
import json
import logging
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import media
import numpy as np
import pytest
import torch

import metavoice.audio.decode as decode
from metavoice.audio.containers import detect_container
from metavoice.audio.sound import AudioLimits, audio_duration, load_audio, load_span
from metavoice.core.errors import AudioError

RATE = media.RATE
needs_ffmpeg = pytest.mark.skipif(not decode._has_ffmpeg(), reason='needs pip install "metavoice[media]"')
LOSSLESS = "wav24 wav32 wavf wavd flac24 aifc alac mkv caf w64 avi mka".split()


@pytest.fixture(scope="session")
def files():
    return media.make_files(decode._has_ffmpeg())


@pytest.fixture(scope="session")
def speech():
    return media.make_speech()


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, logger="metavoice.audio.decode")
    return lambda: [record.getMessage() for record in caplog.records]


def likeness(audio, speech):
    "The correlation with the speech, at the best delay within 100 ms; encoders delay it."
    x = audio.resample(RATE).samples.numpy()
    spectrum = np.conj(np.fft.rfft(x, 2**18)) * np.fft.rfft(speech, 2**18)
    best = np.fft.irfft(spectrum)[np.r_[: RATE // 10, -RATE // 10 : 0]].max()
    return best / np.sqrt(np.square(x).sum() * np.square(speech).sum())


# formats


@pytest.mark.parametrize("name", [*media.SOUNDFILE, *(pytest.param(name, marks=needs_ffmpeg) for name in media.FFMPEG)])
def test_every_format_is_read_by_its_content(tmp_path, files, speech, warnings, name):
    path = tmp_path / "recording.doc"
    path.write_bytes(files[name])
    audio = load_audio(path)
    assert abs(audio.duration - 2) < 0.12 and likeness(audio, speech) > (0.6 if name == "amr" else 0.97)
    assert load_audio(files[name], limits=AudioLimits()) == audio  # a stranger's, without a name
    assert abs(audio_duration(path) - audio.duration) < 1e-6
    assert not warnings()
    if name in LOSSLESS:
        error = np.abs(audio.samples.numpy() - speech).max()
        assert len(audio.samples) == len(speech) and error < 1e-4, error


def test_bits_and_companding_keep_the_level(files, speech):
    for name in ("wav8", "alaw", "ulaw", "ima"):
        assert abs(load_audio(files[name]).samples.std() / speech.std() - 1) < 0.02


@needs_ffmpeg
@pytest.mark.parametrize("name, options", [("mp4", dict(movflags="frag_keyframe+empty_moov")), ("ipod", None)])
def test_the_sound_of_a_film(speech, name, options):
    data = media.write_media(speech, name, "aac", film=name == "mp4", options=options)
    assert likeness(load_audio(data), speech) > 0.97


@needs_ffmpeg
def test_a_film_without_sound_is_refused():
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), "uint8"))))
        container.mux(video.encode())
    with pytest.raises(AudioError, match="there is no sound in it"):
        load_audio(file.getvalue(), name="silent.mp4")


@pytest.mark.parametrize("name", ["m4a", "webm", "aac", "amr", "wma"])
def test_without_ffmpeg_the_extra_is_named(files, monkeypatch, name):
    if name not in files:
        files = dict(m4a=b"\0\0\0\x1cftypM4A ", webm=b"\x1a\x45\xdf\xa3", aac=b"\xff\xf1", amr=b"#!AMR", wma=None)
        files["wma"] = b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"
        if name == "m4a":
            files["m4a"] += bytes(16) + b"\0\0\0\x08moov"
    monkeypatch.setattr(decode, "_has_ffmpeg", lambda: False)
    with pytest.raises(AudioError) as e:
        load_audio(files[name], name=f"voice.{name}")
    assert f"voice.{name}: FFmpeg is needed for" in str(e.value) and 'pip install "metavoice[media]"' in str(e.value)


@pytest.mark.parametrize("name", media.SOUNDFILE)
def test_the_usual_formats_need_no_ffmpeg(files, monkeypatch, name):
    monkeypatch.setattr(decode, "_has_ffmpeg", lambda: False)
    assert abs(load_audio(files[name], limits=AudioLimits()).duration - 2) < 0.12


# incomplete files


def warned_once(warnings, *words):
    "Expect one warning, which contains all words."
    (message,) = warnings()
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.parametrize("name", ["wav", "wav24", "wavf", "flac", "ogg", "opus", "mp3", "aiff", "au", "rf64"])
@pytest.mark.parametrize("keep", [0.6, 0.9])
@pytest.mark.parametrize("ffmpeg", [True, False])
def test_a_truncated_file_is_read_as_far_as_it_goes(files, speech, warnings, monkeypatch, name, keep, ffmpeg):
    if not ffmpeg:
        monkeypatch.setattr(decode, "_has_ffmpeg", lambda: False)
    data = files[name]
    audio = load_audio(data[: int(keep * len(data))], name=f"a.{name}")
    assert max(0.4, 2 * keep - 1.1) < audio.duration < 2 * keep + 0.1
    assert likeness(audio, speech[: round(audio.duration * RATE)]) > 0.97
    warned_once(warnings, f"a.{name}: it is truncated", f"{audio.duration:.2f} s", "were read")


@needs_ffmpeg
@pytest.mark.parametrize("name", ["webm", "mkv", "aac", "amr", "wma", "caf", "w64"])
def test_a_truncated_file_for_ffmpeg(files, warnings, name):
    data = files[name]
    audio = load_audio(data[: int(0.7 * len(data))], name=f"a.{name}")
    assert 0.9 < audio.duration < 1.6
    warned_once(warnings, f"a.{name}", "truncated", f"{audio.duration:.2f} s", "were read")


@needs_ffmpeg
@pytest.mark.parametrize("flags", ["faststart", "frag_keyframe+empty_moov"])
def test_a_truncated_m4a(tmp_path, speech, warnings, flags):
    path = tmp_path / "a.m4a"
    path.write_bytes(b"")
    media.write_media(speech, "mp4", "aac", options=dict(movflags=flags), file=str(path))
    data = path.read_bytes()
    audio = load_audio(data[: int(0.6 * len(data))])
    assert 0.5 < audio.duration < 1.3
    warned_once(warnings, "it is truncated", f"{audio.duration:.2f} s")


def test_an_m4a_without_its_index_is_refused(files, speech):
    data = files.get("m4a", b"\0\0\0\x10ftypM4A \0\0\0\0\0\0\x40\0mdat" + bytes(500))
    for end in (data.index(b"mdat") + 100, len(data) - 10 if "m4a" not in files else data.index(b"moov") - 10):
        with pytest.raises(AudioError, match="memo.m4a: the recording was never finished, its index"):
            load_audio(data[:end], name="memo.m4a")


def test_a_wav_a_byte_short(files, warnings):
    whole = load_audio(files["wav"])
    assert torch.equal(load_audio(files["wav"][:-1]).samples, whole.samples[:-1])
    warned_once(warnings, "truncated")


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
@pytest.mark.parametrize("riff", [0, 0xFFFFFFFF])
def test_a_wav_without_its_length(files, warnings, length, riff):
    "FFmpeg writes 0 or all ones into a pipe; a recorder without power leaves zeros."
    data = bytearray(files["wav"])
    at = data.index(b"data")
    data[4:8], data[at + 4 : at + 8] = struct.pack("<I", riff), struct.pack("<I", length)
    assert load_audio(bytes(data)) == load_audio(files["wav"])
    assert audio_duration(bytes(data)) == 2
    warned_once(warnings, "its header gives no length; 2.00 s were read")


@needs_ffmpeg
@pytest.mark.parametrize(
    "format, codec", [("wav", "pcm_s16le"), ("flac", "flac"), ("ogg", "libopus"), ("webm", "libopus"), ("mp3", "mp3")]
)
def test_what_ffmpeg_writes_into_a_pipe(speech, warnings, format, codec):
    class Pipe:
        def __init__(self):
            self.data = b""

        def write(self, data):
            self.data += bytes(data)
            return len(data)

    import av

    pipe, rate = Pipe(), 48000 if codec == "libopus" else RATE
    with av.open(pipe, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(stream.format, "mono", rate, frame_size=stream.codec_context.frame_size or 0)
        frame = av.AudioFrame.from_ndarray(speech[None], "flt", "mono")
        frame.sample_rate = RATE
        for part in (*resampler.resample(frame), *resampler.resample(None), None):
            container.mux(stream.encode(part))
    audio = load_audio(pipe.data)
    assert abs(audio.duration - 2) < 0.12 and likeness(audio, speech) > 0.93
    assert len(warnings()) == (format == "wav")


def crc(page):
    "The checksum of an Ogg page whose own is 0 (RFC 3533)."
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value & 0x80000000 else value << 1) & 0xFFFFFFFF
    return value


@pytest.mark.parametrize("name", ["ogg", "opus"])
def test_an_ogg_without_its_end_mark(files, warnings, name):
    data = bytearray(files[name])
    at = data.rindex(b"OggS")
    page = data[at:]
    page[5] &= ~4
    page[22:26] = bytes(4)
    page[22:26] = struct.pack("<I", crc(page))
    audio = load_audio(bytes(data[:at] + page), limits=AudioLimits(), name="voice.opus")
    assert abs(audio.duration - 2) < 0.1
    warned_once(warnings, "voice.opus: its end is missing")


@pytest.mark.parametrize("name", ["wav", "flac", "ogg", "opus", "mp3", "aiff", "au", "m4a", "webm", "w64", "caf"])
def test_garbage_behind_the_sound_is_ignored(files, warnings, name):
    if name not in files:
        pytest.skip('needs pip install "metavoice[media]"')
    noise = np.random.default_rng(0).bytes(50_000)
    whole, audio = load_audio(files[name]), load_audio(files[name] + noise)
    assert abs(audio.duration - whole.duration) < 0.1
    n = min(len(whole.samples), len(audio.samples)) - 3000
    assert torch.allclose(whole.samples[:n], audio.samples[:n], atol=1e-3)


def id3_tag(size):
    "A tag with a cover picture."
    body = b"APIC" + struct.pack(">I", size - 10) + b"\0\0" + np.random.default_rng(0).bytes(size - 10)
    return b"ID3\x03\0\0" + bytes(size >> 7 * n & 127 for n in (3, 2, 1, 0)) + body


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "aiff"])
def test_tags_and_pictures_before_the_sound(files, warnings, name):
    for size in (100, 1_000_000):
        assert load_audio(id3_tag(size) + files[name]) == load_audio(files[name])
    assert load_audio(files[name] + b"TAG" + b" " * 125).duration == load_audio(files[name]).duration
    assert not warnings()


def test_an_mp3_that_starts_anywhere(files, speech):
    for start in (1, 1000, 3000):
        audio = load_audio(files["mp3"][start:], limits=AudioLimits())
        assert audio.duration > 0.8
    assert abs(load_audio(bytes(700) + files["mp3"], limits=AudioLimits()).duration - 2) < 0.1


def test_flac_with_a_flaw_in_the_middle(files, warnings):
    data = bytearray(files["flac"])
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    audio = load_audio(bytes(data))
    assert audio.duration > (1.6 if decode._has_ffmpeg() else 0.7)
    warned_once(warnings, "truncated", "of 2.00 s were read")


# channels, rates and values


def stereo(*channels, subtype="FLOAT"):
    return media.write_sound(np.stack(channels, 1), format="WAV", subtype=subtype)


def test_channels_are_mixed_or_chosen(speech):
    noise = np.random.default_rng(1).normal(0, 0.03, len(speech)).astype("float32")
    for channels, expected in [
        ((speech, speech), speech),
        ((speech, 0.5 * speech), 0.75 * speech),
        ((speech, -speech), speech),
        ((0.5 * speech, -speech), -speech),
        ((0 * speech, speech), speech),
        ((0 * speech + 0.2, speech), speech),
        ((noise, speech), speech),
        ((speech, speech, 0 * speech, 0 * speech), speech),
        ((speech, -speech, speech, -speech), speech),
    ]:
        mixed = load_audio(stereo(*channels)).samples.numpy()
        # either channel of an inverted pair will do
        assert min(np.abs(mixed - expected).max(), np.abs(mixed + expected).max()) < 0.03 * np.abs(expected).max()


@needs_ffmpeg
def test_channels_of_a_film_are_chosen(speech):
    file = io.BytesIO()
    import av

    with av.open(file, "w", format="mov") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout="stereo")
        both = np.round(32767 * np.stack([speech, -speech], 1)).astype("int16").reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(both, "s16", "stereo")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert likeness(load_audio(file.getvalue()), speech) > 0.99


@pytest.mark.parametrize("rate", [8000, 11025, 96000, 192000, 384000])
@pytest.mark.parametrize("format", ["WAV", "FLAC"])
def test_rates(rate, format):
    samples = media.make_speech(1.0, rate)
    audio = load_audio(media.write_sound(samples, rate, format=format), 24000, limits=AudioLimits())
    assert audio.sample_rate == 24000 and likeness(audio, media.make_speech(1.0)) > 0.98


@pytest.mark.parametrize("rate", [7999, 384001])
def test_rates_beyond_the_limits(rate):
    data = media.write_sound(media.make_speech(0.2, 8000), rate, format="WAV")
    with pytest.raises(AudioError, match=f"its sample rate is {rate} Hz; 8000 to 384000 Hz are taken"):
        load_audio(data, limits=AudioLimits())
    assert load_audio(data).sample_rate == rate


@needs_ffmpeg
def test_limits_hold_for_ffmpeg():
    silence = np.zeros(130 * 8000, "float32")
    data = media.write_media(silence, "webm", "libopus", 48000, source_rate=8000)
    assert len(data) < 200_000
    with pytest.raises(AudioError, match="it is longer than 120 s"):
        load_audio(data, limits=AudioLimits())
    with pytest.raises(AudioError, match="more than 1,000,000 samples"):
        load_audio(data, limits=AudioLimits(1000, samples=10**6))


@needs_ffmpeg
def test_values_that_are_not_finite_in_a_film(speech):
    samples = speech.copy()
    samples[RATE] = np.nan
    data = media.write_media(samples, "mov", "pcm_f32le")
    with pytest.raises(AudioError, match="NaN or infinite sample at 1.000 s"):
        load_audio(data)


# what isn't sound

PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{path}'\n",
    "dash": "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><BaseURL>{path}</BaseURL></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
    "rtsp": "[Reference]\nRef1={path}\n",
}


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlists_open_nothing(tmp_path, files, kind, trusted):
    (tmp_path / "secret.wav").write_bytes(files["wav"])
    list_file = tmp_path / "a.wav"
    list_file.write_text(PLAYLISTS[kind].format(path=tmp_path / "secret.wav"))
    with pytest.raises(AudioError, match="it isn't audio that can be understood"):
        load_audio(list_file, limits=None if trusted else AudioLimits())


def test_other_files_are_refused():
    draw = np.random.default_rng(0)
    for n in range(200):
        with pytest.raises(AudioError):
            load_audio(draw.bytes(draw.integers(1, 30_000)), limits=AudioLimits())
    for begin in (b"%PDF-1.7\n", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x7fELF", b"GIF89a", b"\xff\xd8\xff\xe0"):
        assert detect_container(begin + bytes(500)) is None
        with pytest.raises(AudioError, match="isn't audio"):
            load_audio(begin + bytes(500))


def test_odd_names_of_files(tmp_path, files, warnings):
    path = tmp_path / "a\nb\udcff.wav"
    path.write_bytes(files["wav"][:-1])
    load_audio(path)
    warned_once(warnings, "a?b?.wav: it is truncated")
    with pytest.raises(AudioError, match="no such file"):
        load_audio(tmp_path / "none\nb.wav")


def test_names_of_strangers_are_shown_on_one_line(files):
    with pytest.raises(AudioError) as e:
        load_audio(b"nothing", name="a\nERROR forged\x1b[2J" + "b" * 500)
    assert "\n" not in str(e.value) and "\x1b" not in str(e.value) and len(str(e.value)) < 400


# spans


@pytest.mark.parametrize("name", ["wav", "flac", "ogg", "opus", "mp3", "m4a", "webm", "aac"])
def test_spans(files, name):
    if name not in files:
        pytest.skip('needs pip install "metavoice[media]"')
    whole, part = load_audio(files[name]), load_span(files[name], 0.7, 1.5)
    rate = whole.sample_rate
    assert abs(part.duration - 0.8) < 1e-3
    expected = whole.samples[round(0.7 * rate) :][: len(part.samples)]
    assert (part.samples - expected).square().mean() < 1e-3 * expected.square().mean()
    assert load_span(files[name]) == whole
    assert load_span(files[name], 1.5, 99).duration == pytest.approx(whole.duration - 1.5, abs=1e-3)
    with pytest.raises(AudioError, match="lasts 2.* s; there is nothing from 5.00 s to 6.00 s"):
        load_span(files[name], 5, 6)


@needs_ffmpeg
@pytest.mark.parametrize("format, codec, rate", [("mp4", "aac", RATE), ("webm", "libopus", 48000)])
def test_a_span_of_a_long_film_is_found(format, codec, rate):
    data = media.write_media(media.make_speech(40.0), format, codec, rate)
    whole, part = load_audio(data), load_span(data, 30.0, 31.0)
    expected = whole.samples[30 * rate : 31 * rate]
    near = [(part.samples - whole.samples[30 * rate + d :][:rate]).square().mean() for d in range(-50, 51)]
    assert len(part.samples) == rate and min(near) < 0.01 * expected.square().mean()


def test_the_duration_of_a_truncated_file_is_what_can_be_read(files):
    for name in ("wav", "flac", "ogg", "mp3", "aiff"):
        data = files[name][: round(0.8 * len(files[name]))]
        assert audio_duration(data) == pytest.approx(load_audio(data).duration)


# mutated files


def load_mutants(count, seed):
    "Load mutated files in a process of its own; returns what became of them."
    command = [sys.executable, str(Path(media.__file__)), str(count), str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30 + 2 * count)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@needs_ffmpeg
def test_packets_of_one_sample_take_no_time(files, speech):
    data = bytearray(files["caf"])
    data[40] = 64  # a packet has 2**30 frames, so the demuxer gives one sample at a time
    start = time.perf_counter()
    assert len(load_audio(bytes(data), limits=AudioLimits()).samples) == len(speech)
    assert time.perf_counter() - start < 5


@needs_ffmpeg
def test_mutated_files():
    found = load_mutants(60, 1)
    assert found["slowest"] < 5 and found["read"] + found["refused"] == 120, found


@needs_ffmpeg
@pytest.mark.slow
def test_500_mutated_files():
    found = load_mutants(500, 2)
    print(found)
    assert found["slowest"] < 5 and found["read"] > 300, found
