"""Hash the samples of twelve fixed calls, to compare two versions of metavoice bit for bit on one machine.

    python tests/identical.py new.json
    python tests/identical.py new.json --compare old.json

The hashes depend on the processor and on PyTorch, so both runs need the same machine. The calls use nano and a bundle
of released files (shared/golden beside the repository) with a random EnCodec, which is made once in the folder named
by METAVOICE_BASELINE (default: /tmp/baseline)."""
import os

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")

import argparse  # noqa: E402
import csv  # noqa: E402
import hashlib  # noqa: E402
import inspect  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import metavoice  # noqa: E402
from metavoice import TTS  # noqa: E402

SHARED = ROOT.parent / "shared"
GOLDEN = Path(os.environ.get("METAVOICE_BASELINE", "/tmp/baseline")) / "golden"
REFERENCES = GOLDEN / "references"
REFERENCE_NAMES = ["golden_one", "golden_two", "golden_three", "golden_four", "golden_five"]
REFERENCE_SOURCES = ["voice0.wav", "voice1.wav", "voice2.wav", "voice3.wav", "../data/bria.mp3"]

ONE = "The old man walked to the river."
FIVE = [
    "The dog slept.", "Where is the red book?", ONE, "The cat and the dog slept quietly.",
    "The woman was tired, so she sat down. The old man walked to the river, and the little dog ran after him.",
]
TABLE = [
    dict(text="The dog slept.", voice="af_heart", id="one", seed="11"),
    dict(text="Where is the red book?", voice="af_bella", id="two", seed=""),
    dict(text=FIVE[4], voice="", id="three", seed=""),
]
NUMBERS = "one two three four five six seven eight nine ten".split()
ENDING = ["Where is the red book?", ONE, "The cat ran home.", "She sat down.", "It was late."] * 2
BOOK = "\n\n".join([f"The dog number {number} slept." for number in NUMBERS] + ENDING)


def read_samples(file):
    return soundfile.read(file, dtype="int16")


def samples_of(audios):
    return [(audio.samples, audio.sample_rate) for audio in audios]


def nano_whole(nano, golden):
    return samples_of([nano.synthesise(ONE, seed=1)])


def nano_options(nano, golden):
    options = dict(takes=1, denoise=False, vocoder="codec", guidance=2., top_p=.8, temperature=.9)
    return samples_of([nano.synthesise(ONE, "af_bella", seed=2, **options)])


def nano_chunks(nano, golden):
    return samples_of(nano.stream(FIVE[4], "af_heart", seed=3, chunk=.4))


def nano_pieces(nano, golden):
    return samples_of(nano.stream(FIVE[4], "am_michael", seed=4, chunk=None, takes=2))


def nano_batch(nano, golden):
    voices = ["af_heart", "af_bella", "am_michael", None, "bf_emma"]
    return samples_of(nano.synthesise(FIVE, voices, seed=[1, 2, 3, 4, 5], takes=2))


def nano_book_resumed(nano, golden, folder):
    "Twenty segments, interrupted after ten (in the first section) and after eighteen (in the second)."
    from metavoice.jobs.longform import read_aloud

    options = dict(resume=True, takes=1, denoise=True, seed=6, voice="af_bella")
    for after in (10, 18):
        def interrupt(stage, done, of, after=after):
            if stage == "speech" and done == after:
                raise KeyboardInterrupt

        try:
            read_aloud(nano, BOOK, folder / "book.wav", on_progress=interrupt, **options)
        except KeyboardInterrupt:
            pass
        assert not (folder / "book.wav").exists()
    done = read_aloud(nano, BOOK, folder / "book.wav", **options)
    assert done["resumed"] == 18 and done["segments"] == 20, done
    return [read_samples(folder / "book.wav")]


def nano_table(nano, golden, folder):
    from metavoice.jobs.batch import run_batch

    with open(folder / "table.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, TABLE[0])
        writer.writeheader()
        writer.writerows(TABLE)
    done = run_batch(nano, folder / "table.csv", folder / "out", seed=7, takes=2, voice="am_michael")
    assert done["spoken"] == 3 and not done["failed"], done
    return [read_samples(folder / "out" / f"{row['id']}.wav") for row in TABLE]


def ask_server(nano, folder, **body):
    import httpx

    from metavoice.serve.app import start_server
    from metavoice.serve.config import ServerConfig

    server = start_server(ServerConfig(port=0, threads=1, voices=str(folder)), nano)
    try:
        with httpx.Client(base_url=server.url, timeout=120) as http:
            answer = http.post("/v1/audio/speech", json=dict(model="nano", **body))
    finally:
        server.stop()
        server.thread.join(60)
    assert answer.status_code == 200, answer.text
    return answer.content


def server_pcm(nano, golden, folder):
    pcm = ask_server(nano, folder, input=ONE, voice="af_heart", response_format="pcm", seed=8)
    return [(np.frombuffer(pcm, "<i2"), 24000)]


def server_wav(nano, golden, folder):
    wav = ask_server(nano, folder, input=FIVE[4], voice="af_bella", response_format="wav", seed=9)
    return [read_samples(io.BytesIO(wav))]


def golden_whole(nano, golden):
    return samples_of([golden.synthesise("The dog slept.", REFERENCES / "golden_one.wav", seed=10)])


def golden_stream(nano, golden):
    "Whole segments by multi-band diffusion, then chunks by EnCodec."
    voice = REFERENCES / "golden_two.wav"
    whole = golden.stream("The dog slept. Yes.", voice, seed=11)
    chunks = golden.stream("The dog slept.", voice, seed=11, vocoder="codec", chunk=.3)
    return samples_of([*whole, *chunks])


def golden_batch(nano, golden):
    texts = ["The dog.", "Where is it?", "Yes.", "The cat and the dog.", "She sat down. No."]
    voices = [REFERENCES / f"{name}.wav" for name in REFERENCE_NAMES]
    return samples_of(golden.synthesise(texts, voices, seed=[1, 2, 3, 4, 5], steps=5))


CALLS = [nano_whole, nano_options, nano_chunks, nano_pieces, nano_batch, nano_book_resumed, nano_table, server_pcm,
         server_wav, golden_whole, golden_stream, golden_batch]


def make_golden():
    "Make a folder of released files with a random EnCodec and references of 31 s."
    if (GOLDEN / "done").exists():
        return
    from transformers import EncodecConfig, EncodecModel

    REFERENCES.mkdir(parents=True, exist_ok=True)
    for file in (SHARED / "golden").glob("*.pt"):
        if not (GOLDEN / file.name).exists():
            (GOLDEN / file.name).symlink_to(file)
    torch.manual_seed(0)
    codec = EncodecModel(EncodecConfig()).eval()  # the defaults are those of facebook/encodec_24khz
    for name, tensor in codec.state_dict().items():
        if name.endswith("codebook.embed"):
            tensor.normal_()
    codec.save_pretrained(GOLDEN / "encodec_24khz")
    for name, source in zip(REFERENCE_NAMES, REFERENCE_SOURCES):
        samples, rate = soundfile.read(SHARED / "golden" / source, dtype="float32")
        samples = np.tile(samples, 1 + 31 * rate // len(samples))[:31*rate]
        soundfile.write(REFERENCES / f"{name}.wav", samples, rate, subtype="PCM_16")
    (GOLDEN / "done").touch()


def run_call(call, nano, golden):
    "Return what one call gave: hashes of its parts and of the whole."
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        more = [Path(scratch)] if "folder" in inspect.signature(call).parameters else []
        made = call(nano, golden, *more)
    parts, whole = [], hashlib.sha256()
    for n, (samples, rate) in enumerate(made):
        array = np.ascontiguousarray(samples)
        assert array.ndim == 1 and array.dtype in (np.float32, np.int16), (array.shape, array.dtype)
        peak = float(np.abs(array.astype(np.float64)).max(initial=0))
        assert peak > 0, f"part {n} of {call.__name__} is silent"
        whole.update(array.tobytes())
        key = hashlib.sha256(array.tobytes()).hexdigest()
        parts.append(dict(samples=len(array), sample_rate=rate, dtype=str(array.dtype), peak=peak, sha256=key))
    samples = sum(part["samples"] for part in parts)
    seconds = round(time.perf_counter() - start, 2)
    return dict(sha256=whole.hexdigest(), samples=samples, seconds_of_cpu=seconds, parts=parts)


def compare(found, about, other):
    "Print which calls differ from another run's; return how many."
    if any(other["about"][key] != about[key] for key in ("capability", "onednn", "torch")):
        print("the other run had another kind of processor or PyTorch:", other["about"])
    different = 0
    for name, one in found.items():
        two = other["calls"].get(name, {})
        if one.get("sha256") and one.get("sha256") == two.get("sha256"):
            print(f"same       {name}")
            continue
        different += 1
        parts, others = one.get("parts", []), two.get("parts", [])
        first = next((n for n, (a, b) in enumerate(zip(parts, others)) if a["sha256"] != b["sha256"]), "-")
        print(f"DIFFERENT  {name}: {one.get('samples')} samples in {len(parts)} parts against {two.get('samples')} in "
              f"{len(others)}; the first part that differs is {first}")
    return different


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="JSON file to write")
    parser.add_argument("--compare", metavar="JSON", help="file of another run; exit code 1 if a call differs")
    parser.add_argument("--only", nargs="*", metavar="CALL", choices=[call.__name__ for call in CALLS])
    args = parser.parse_args()
    torch.set_num_threads(1)
    make_golden()
    nano, golden = (TTS.from_pretrained(name, device="cpu") for name in ("nano", GOLDEN))
    found, failed = {}, 0
    for call in CALLS:
        if args.only and call.__name__ not in args.only:
            continue
        try:
            found[call.__name__] = made = run_call(call, nano, golden)
        except Exception as e:
            traceback.print_exc()
            found[call.__name__] = dict(error=f"{type(e).__name__}: {e}")
            failed += 1
            continue
        print(f"{call.__name__:18} {made['samples']:9} samples in {len(made['parts']):2} parts  "
              f"{made['sha256'][:16]}  {made['seconds_of_cpu']:6.2f} s", flush=True)
    capability, onednn = torch.backends.cpu.get_cpu_capability(), os.environ.get("ONEDNN_MAX_CPU_ISA")
    about = dict(metavoice=metavoice.__file__, torch=torch.__version__, capability=capability, onednn=onednn)
    Path(args.out).write_text(json.dumps(dict(about=about, calls=found), indent=1) + "\n")
    if args.compare:
        failed += compare(found, about, json.loads(Path(args.compare).read_text()))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
