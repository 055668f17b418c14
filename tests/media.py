"""Sound files of all formats, and mutations of them.

As a program: load mutated files, and print what became of them: python media.py COUNT SEED
"""

import io
import json
import random
import struct
import sys
import time
from collections import Counter

import numpy as np
import soundfile

RATE = 24000

SOUNDFILE = dict(
    wav=("WAV", "PCM_16"), wav8=("WAV", "PCM_U8"), wav24=("WAV", "PCM_24"), wav32=("WAV", "PCM_32"),
    wavf=("WAV", "FLOAT"), wavd=("WAV", "DOUBLE"), alaw=("WAV", "ALAW"), ulaw=("WAV", "ULAW"), ima=("WAV", "IMA_ADPCM"),
    rf64=("RF64", "PCM_16"), flac=("FLAC", "PCM_16"), flac24=("FLAC", "PCM_24"), ogg=("OGG", "VORBIS"),
    opus=("OGG", "OPUS"), mp3=("MP3", "MPEG_LAYER_III"), aiff=("AIFF", "PCM_16"), aifc=("AIFF", "FLOAT"),
    au=("AU", "PCM_16"),
)  # fmt: skip

FFMPEG = dict(
    m4a=("ipod", "aac", RATE), alac=("ipod", "alac", RATE), mp4=("mp4", "aac", RATE), mov=("mov", "aac", RATE),
    aac=("adts", "aac", RATE), webm=("webm", "libopus", 48000), mkv=("matroska", "pcm_s16le", RATE),
    amr=("amr", "libopencore_amrnb", 8000), wma=("asf", "wmav2", 16000), caf=("caf", "pcm_s16le", RATE),
    w64=("w64", "pcm_s16le", RATE), avi=("avi", "pcm_s16le", RATE), ac3=("ac3", "ac3", 48000),
    wv=("wv", "wavpack", RATE), mka=("matroska", "alac", RATE), ts=("mpegts", "aac", RATE),
    threegp=("3gp", "aac", RATE), wavmp3=("wav", "libmp3lame", RATE), flv=("flv", "libmp3lame", 22050),
)  # fmt: skip


def make_speech(seconds=2.0, rate=RATE, seed=0):
    "A hum in syllables, with a little noise: (time,) float32."
    t = np.arange(round(seconds * rate)) / rate
    syllables = np.clip(np.sin(2 * np.pi * 3 * t), 0, 1) ** 0.5
    hum = np.sin(2 * np.pi * (150 * t + 3 * np.sin(2 * np.pi * t))) + 0.3 * np.sin(2 * np.pi * 450 * t)
    return (0.3 * syllables * hum + np.random.default_rng(seed).normal(0, 1e-4, len(t))).astype("float32")


def write_sound(samples, rate=RATE, **options):
    "The bytes of a file that libsndfile writes; samples are (time,) or (time, channels)."
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **options)
    return file.getvalue()


def write_media(samples, format, codec, rate=RATE, film=False, options=None, source_rate=RATE, file=None):
    "The bytes of a mono file that FFmpeg writes, with a film of a moving grey if wanted, or None for a path."
    import av

    file = file or io.BytesIO()
    with av.open(file, "w", format=format, options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 32000
        if film:
            video = container.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            for n in range(10):
                picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * n, "uint8"))
                container.mux(video.encode(picture))
            container.mux(video.encode())
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(stream.format, "mono", rate, frame_size=size)
        frame = av.AudioFrame.from_ndarray(samples[None], "flt", "mono")
        frame.sample_rate = source_rate
        for part in (*resampler.resample(frame), *resampler.resample(None), None):
            container.mux(stream.encode(part))
    return None if isinstance(file, str) else file.getvalue()


def make_files(with_ffmpeg=True):
    "A file of each format: name → bytes."
    speech = make_speech()
    files = {
        name: write_sound(speech, format=format, subtype=subtype) for name, (format, subtype) in SOUNDFILE.items()
    }
    if with_ffmpeg:
        for name, (format, codec, rate) in FFMPEG.items():
            files[name] = write_media(speech, format, codec, rate, film=name in ("mp4", "avi"))
    return files


# mutations


def flip(data, draw):
    "Change some bits anywhere."
    out = bytearray(data)
    for _ in range(draw.choice((1, 5, 50, 500))):
        out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)


def flip_header(data, draw):
    "Change some bytes of the first 200."
    out = bytearray(data)
    for _ in range(draw.choice((1, 3, 10))):
        out[draw.randrange(min(200, len(out)))] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
    return bytes(out)


def lie(data, draw):
    "Put an extreme number somewhere into the first 100 bytes."
    at = draw.randrange(min(100, len(data) - 4))
    number = draw.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1))
    return data[:at] + struct.pack(draw.choice("<>") + "I", number) + data[at + 4 :]


def cut(data, draw):
    "Leave out the end."
    return data[: draw.randrange(1, len(data))]


def behead(data, draw):
    "Leave out the beginning."
    return data[draw.randrange(1, len(data)) :]


def cut_out(data, draw):
    "Leave out a part in the middle."
    begin, end = sorted(draw.randrange(len(data)) for _ in range(2))
    return data[:begin] + data[end:]


def repeat(data, draw):
    "Say a part of the file twice."
    begin, end = sorted(draw.randrange(len(data)) for _ in range(2))
    return data[:end] + data[begin:]


def add_garbage(data, draw):
    "Put other bytes behind, before or into the file."
    noise, at = draw.randbytes(draw.choice((1, 100, 10_000, 100_000))), draw.choice((0, len(data), len(data) // 2))
    return data[:at] + noise + data[at:]


def zero(data, draw):
    "Zero a part of the file."
    begin, end = sorted(draw.randrange(len(data)) for _ in range(2))
    return data[:begin] + bytes(end - begin) + data[end:]


MUTATIONS = (flip, flip_header, lie, cut, behead, cut_out, repeat, add_garbage, zero)


def mutants(count, seed=0, files=None):
    "Yield (name, mutation, bytes); each format and each mutation comes about as often."
    draw, files = random.Random(seed), files or make_files()
    names = sorted(files)
    for n in range(count):
        name, mutation = names[n % len(names)], draw.choice(MUTATIONS)
        data = mutation(files[name], draw)
        if draw.random() < 0.3:
            data = draw.choice(MUTATIONS)(data, draw) if len(data) > 10 else data
        yield name, mutation.__name__, data


def main(count, seed):
    from metavoice.audio.sound import AudioLimits, audio_duration, load_audio, load_span
    from metavoice.core.errors import AudioError

    results, slowest, longest = Counter(), 0.0, None
    for n, (name, mutation, data) in enumerate(mutants(count, seed)):
        for trusted in (False, True):
            print(n, name, mutation, trusted, len(data), file=sys.stderr, flush=True)
            start = time.perf_counter()
            try:
                audio = load_audio(data, limits=None if trusted else AudioLimits(), name=name)
                assert audio.samples.isfinite().all() and len(audio.samples)
                results["read"] += 1
                if trusted:
                    assert audio_duration(data) > 0
                    load_span(data, audio.duration / 2)
            except AudioError as e:
                assert "\n" not in str(e), e
                results["refused"] += 1
            seconds = time.perf_counter() - start
            if seconds > slowest:
                slowest, longest = seconds, f"{n} {name} {mutation}"
    print(json.dumps(dict(results, slowest=slowest, longest=longest)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
