"Encoding: 16 bits, files in memory, files that grow, full disks, and streams of bytes."

import importlib.util
import io
import os
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import pytest
import soundfile
import torch

from metavoice.audio.containers import inspect_file
from metavoice.audio.encode import (
    AUDIO_FORMATS,
    STREAM_MEDIA_TYPES,
    SoundWriter,
    StreamBuffer,
    StreamEncoder,
    encode_audio,
    format_from_path,
    is_generated,
    open_sound_file,
    read_provenance,
    to_int16,
    wav_header,
    wav_tags,
)
from metavoice.audio.sound import load_audio
from metavoice.core.errors import OptionError, OutputError
from metavoice.core.provenance import SYNTHETIC_SPEECH, Provenance

ROOT = Path(__file__).parents[2]
ORIGIN = Provenance("nano", "af_heart*0.7+bm_george*0.3")
RAW = dict(format="RAW", channels=1, subtype="PCM_16")
FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
import torch
from metavoice.audio.encode import open_sound_file
from metavoice.core.errors import OutputError
from metavoice.core.files import atomic_write
for path in sys.argv[1:]:
    try:
        with atomic_write(path) as temporary, open_sound_file(temporary, 24000, path) as write:
            for _ in range(20):
                write(torch.randint(-9000, 9000, (65536,), dtype=torch.int16))
    except OutputError as e:
        print(e)
"""


def test_sixteen_bits_round_and_do_not_wrap():
    x = torch.tensor([0, 1, -1, 2, -2, 0.6 / 32767, -0.6 / 32767])
    assert to_int16(x).tolist() == [0, 32767, -32767, 32767, -32767, 1, -1]


def test_a_recording_of_16_bits_is_written_back_unchanged():
    x, file = torch.arange(-32768, 32768), io.BytesIO()
    with SoundWriter(file, 24000, "flac") as writer:
        writer.write(x[:30_000] / 32768)
        writer.write(x[30_000:] / 32768)
    assert soundfile.read(io.BytesIO(file.getvalue()), dtype="int16")[0].tolist() == x.tolist()


@pytest.mark.parametrize("format", [*AUDIO_FORMATS, "opus"])
def test_files_in_memory(tone, format):
    x = torch.tensor(tone(2.0, 24000))
    for samples in (x, to_int16(x)):
        back, rate = soundfile.read(io.BytesIO(encode_audio(samples, 24000, format)), dtype="float32")
        assert rate == 24000 and abs(len(back) - 48000) < 3000
        assert abs(float(abs(back[12000:36000]).max()) - 0.4) < 0.05


@pytest.mark.parametrize("suffix", AUDIO_FORMATS)
def test_a_file_that_grows(tmp_path, suffix):
    x = to_int16(0.5 * torch.sin(torch.arange(100_000) / 9))
    with open_sound_file(tmp_path / f"a.{suffix}", 24000, "a") as write:
        for part in x.split(33_333):
            write(part)
    got, rate = soundfile.read(tmp_path / f"a.{suffix}", dtype="int16")
    assert rate == 24000 and len(got) == pytest.approx(100_000, rel=0.02)
    if suffix in ("wav", "flac"):
        assert torch.equal(torch.from_numpy(got), x)


@pytest.mark.parametrize("suffix", AUDIO_FORMATS)
@pytest.mark.parametrize("samples", [1, 100, 3000])
def test_short_files_that_grow(tmp_path, suffix, samples):
    with open_sound_file(tmp_path / f"a.{suffix}", 24000) as write:
        write(torch.zeros(samples))
    assert samples <= soundfile.info(tmp_path / f"a.{suffix}").frames < samples + 5000


@pytest.mark.parametrize("suffix", AUDIO_FORMATS)
def test_one_write_and_many_give_the_same_sound(tmp_path, suffix):
    x = 0.5 * torch.sin(torch.arange(50_000) / 9)
    with open_sound_file(tmp_path / f"a.{suffix}", 24000) as write:
        for part in x.split(7000):
            write(part)
    grown, whole = (tmp_path / f"a.{suffix}").read_bytes(), encode_audio(x, 24000, suffix)
    assert suffix == "ogg" or grown == whole
    a, b = (torch.from_numpy(soundfile.read(io.BytesIO(data))[0]) for data in (grown, whole))
    assert len(a) == len(b) and (a - b).abs().max() < 0.01  # Vorbis depends on the blocks it is given


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the disk is made small by a limit of Linux")
def test_a_full_disk_leaves_no_half_file(tmp_path):
    paths = [str(tmp_path / f"a.{suffix}") for suffix in AUDIO_FORMATS]
    command = [sys.executable, "-c", FULL_DISK, *paths]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.stdout.count("can't write") == 4 and "MB are free" in done.stdout, done
    assert "Traceback" not in done.stderr and not os.listdir(tmp_path), done


def test_a_wav_beyond_4_gb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(SoundWriter, "write", lambda self, samples: None)
    with pytest.raises(OutputError, match=r"a.wav: a .wav holds no more than \d+.\d hours; use .flac"):
        with open_sound_file(tmp_path / "a.wav", 24000) as write:
            write(torch.zeros(1, dtype=torch.int16).expand(2**31))


@pytest.mark.parametrize(
    "name, rate, message",
    [
        ("a.docx", 24000, "unknown ending '.docx'; use .wav, .flac, .ogg, .mp3"),
        ("a", 24000, "unknown ending ''"),
        ("a.mp3", 7000, "mp3 knows no 7000 Hz; resample to one of 8000"),
        ("no/a.wav", 24000, "can't write"),
    ],
)
def test_files_that_cannot_be_opened(tmp_path, name, rate, message):
    (tmp_path / "no").touch()
    with pytest.raises(OutputError, match=message):
        with open_sound_file(tmp_path / name, rate):
            pass
    assert os.listdir(tmp_path) == ["no"]


def test_format_from_path():
    assert [format_from_path(name) for name in ("a.WAV", "b/c.flac", Path("d.mp3"))] == ["wav", "flac", "mp3"]
    with pytest.raises(OutputError, match="can't write speech: unknown ending '.aac'"):
        format_from_path("tmp.aac", "speech")


def test_wav_header():
    x = to_int16(torch.linspace(-1, 1, 1000))
    data = wav_header(24000, 1000) + x.numpy().tobytes()
    assert soundfile.info(io.BytesIO(data)).samplerate == 24000
    assert soundfile.read(io.BytesIO(data), dtype="int16")[0].tolist() == x.tolist()
    assert len(wav_header(48000)) == 44 and wav_header(48000)[-4:] == b"\xff" * 4 == wav_header(48000, 2**32)[-4:]


@pytest.mark.parametrize("keep, taken", [(False, [b"head", b"body!"]), (True, [b"", b"HEADbody!"])])
def test_stream_buffer(keep, taken):
    buffer = StreamBuffer(keep)
    assert buffer.write(b"head") == 4
    out = [buffer.take()]
    buffer.write(b"body")
    assert buffer.seek(0) == 0
    buffer.write(b"HEAD")
    assert buffer.tell() == 4 and buffer.seek(0, 2) == 8 and buffer.read() == b""
    buffer.write(b"!")
    assert out + [buffer.take(end=True)] == taken and buffer.take(end=True) == b""


@pytest.mark.parametrize("sample_rate", [24000, 48000])
@pytest.mark.parametrize("format", STREAM_MEDIA_TYPES)
def test_streams(format, sample_rate):
    x = 0.3 * torch.sin(torch.arange(3 * sample_rate) / sample_rate * 1600)
    encoder = StreamEncoder(format, sample_rate)
    parts = [encoder.feed(block) for block in x.split(sample_rate // 4)] + [encoder.finish()]
    data = b"".join(parts)
    if format == "aac":  # libsndfile doesn't read it
        audio = load_audio(data)
        got, rate = audio.samples.numpy(), audio.sample_rate
    else:
        options = RAW | dict(samplerate=24000) if format == "pcm" else {}
        got, rate = soundfile.read(io.BytesIO(data), dtype="float32", **options)
    assert rate == encoder.sample_rate == (24000 if format == "pcm" else sample_rate)
    padding = 2 * 1024 / rate if format == "aac" else 0.06  # ADTS can't say how much of its frames is padding
    assert abs(len(got) / rate - 3) < padding and abs(float(abs(got[rate // 2 : 2 * rate]).max()) - 0.3) < 0.02
    assert sum(map(len, parts[:6])) > 0.3 * len(data) or format == "flac"
    assert encoder.samples_written == 3 * rate


def test_stream_header_of_the_final_length():
    x = torch.linspace(-1, 1, 1000)
    for format in ("wav", "pcm"):
        encoder = StreamEncoder(format, 48000, pcm_rate=48000)
        data = b"".join([encoder.feed(part) for part in x.split(300)] + [encoder.finish()])
        assert data[-2000:] == to_int16(x).numpy().tobytes() and encoder.sample_rate == 48000
        assert encoder.header() == (wav_header(48000, 1000) if format == "wav" else b"")


def test_unknown_format_of_a_stream():
    with pytest.raises(OptionError, match="unknown format 'wma'; use wav, flac, mp3, opus, aac, pcm"):
        StreamEncoder("wma", 48000)


def test_aac_without_pyav(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(OptionError, match="aac needs PyAV.*or use mp3"):
        StreamEncoder("aac", 48000)


@pytest.mark.parametrize("suffix", AUDIO_FORMATS)
def test_generated_speech_is_marked(tmp_path, suffix):
    x = 0.1 * torch.sin(torch.arange(24000) / 20)
    lengths = []
    for origin in (ORIGIN, None, Provenance(program="another program")):
        path = tmp_path / f"a.{suffix}"
        with open_sound_file(path, 24000, origin=origin) as write:
            write(x)
        assert is_generated(path) == (origin == ORIGIN) and read_provenance(path) == origin
        lengths.append(load_audio(path).samples.numel())
    assert len(set(lengths)) == 1


def test_the_mark_of_a_stream_and_other_files(tmp_path):
    encoder = StreamEncoder("wav", 24000, origin=ORIGIN)
    data = encoder.feed(torch.zeros(999)) + encoder.finish()
    header = encoder.header()
    assert len(header) == 44 + len(wav_tags(ORIGIN)) and header[-4:] == (2 * 999).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(header + data[len(header) :])
    assert is_generated(tmp_path / "a.wav") and load_audio(tmp_path / "a.wav").samples.numel() == 999
    with open(tmp_path / "a.wav", "rb") as file:
        assert inspect_file(file).problem is None
    with wave.open(str(tmp_path / "a.wav")) as file:  # a plain reader skips the tags
        assert file.getnframes() == 999
    (tmp_path / "a.txt").write_text("metavoice")
    os.mkfifo(tmp_path / "pipe.wav")
    paths = [tmp_path / "a.txt", tmp_path / "pipe.wav", tmp_path, tmp_path / "no.wav", "/dev/null"]
    assert not any(map(is_generated, paths))


@pytest.mark.parametrize("format", STREAM_MEDIA_TYPES)
def test_a_stream_carries_the_statement(format):
    encoder = StreamEncoder(format, 48000, origin=ORIGIN)
    first = encoder.feed(0.1 * torch.sin(torch.arange(48000) / 20))
    found = read_provenance(io.BytesIO(first + encoder.finish()))
    assert found == (None if format in ("pcm", "aac") else ORIGIN)
    if format not in ("pcm", "aac", "flac"):
        assert SYNTHETIC_SPEECH.encode() in first  # at the beginning, as the end may never be sent


FFMPEG = shutil.which("ffmpeg")


@pytest.mark.skipif(not FFMPEG, reason="ffmpeg isn't installed")
@pytest.mark.parametrize("suffix", [*AUDIO_FORMATS, "opus"])
def test_other_programs_read_the_statement_and_may_drop_it(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(encode_audio(0.1 * torch.sin(torch.arange(48000) / 20), 48000, suffix, ORIGIN))
    show = [FFMPEG.replace("ffmpeg", "ffprobe"), "-v", "error", "-show_entries", "format_tags:stream_tags", str(path)]
    shown = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    assert str(ORIGIN) in shown, shown
    convert = [FFMPEG, "-v", "error", "-i", str(path)]
    subprocess.run([*convert, "-map_metadata", "-1", str(tmp_path / "bare.wav")], check=True)
    assert read_provenance(tmp_path / "bare.wav") is None
    if suffix == "wav" and importlib.util.find_spec("av"):
        subprocess.run([*convert, str(tmp_path / "b.m4a")], check=True)
        assert read_provenance(tmp_path / "b.m4a") == ORIGIN


def test_hostile_tags_are_text(tmp_path):
    origin = Provenance("m" * 10_000, "'; DROP\n\0=%\ud800☃", "")
    path = tmp_path / "a.mp3"
    path.write_bytes(encode_audio(torch.zeros(24000), 24000, "mp3", origin))
    found = read_provenance(path)
    assert found == Provenance("m" * 200, "'; DROP\n\0=%?☃", "") and not is_generated(path)


def test_a_device_needs_no_ending(tmp_path):
    assert format_from_path("/dev/null") == "wav"
    with open_sound_file(tmp_path / "a", 24000, "/dev/null") as write:
        write(torch.zeros(100))
    assert soundfile.info(tmp_path / "a").frames == 100
