"A small model in the released layout through every use: spoken, streamed, served, finetuned by each method."

import shutil
import sys
from pathlib import Path

import pytest
import soundfile
import torch

import metavoice.bundle.hub
from metavoice.bundle.load import load_bundle
from metavoice.bundle.released import ENCODEC_REPO, safe_torch_load
from metavoice.cli import main
from metavoice.core.errors import OptionError
from metavoice.generate.tts import TTS
from metavoice.jobs.longform import read_aloud
from metavoice.measure.small_models import write_small_release

SAMPLES = Path(__file__).parents[1] / "nbs" / "samples"
TEXT = "The old man walked to the river."
LONG = "The old man walked to the river, and the dog followed him. Where is the red book? It rained. " * 4
FILES = ("first_stage.pt", "second_stage.pt", "speaker_encoder.pt", "mbd_comp_8.pt")
METHODS = ("last", "full", "lora")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    "The hub has EnCodec alone; the cache is empty."
    folder, patch = tmp_path_factory.mktemp("released"), pytest.MonkeyPatch()

    def download(repo, files, revision):
        assert repo == ENCODEC_REPO, repo
        return folder / "encodec"

    patch.setattr(metavoice.bundle.hub, "download", download)
    patch.setenv("METAVOICE_CACHE", str(folder / "cache"))
    patch.setenv("ACCELERATE_USE_CPU", "true")
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def release(environment):
    return write_small_release(environment)


@pytest.fixture(scope="module")
def recording(environment):
    "Twenty seconds of one voice: too short for the release, long enough for a model that was finetuned to it."
    parts = [soundfile.read(path)[0] for path in sorted(SAMPLES.glob("awb_*.ogg"))]
    rate = soundfile.info(SAMPLES / "awb_1.ogg").samplerate
    samples = torch.cat([torch.tensor(part) for part in parts] * 3)[: 20 * rate]
    path = environment / "awb.wav"
    soundfile.write(path, samples.numpy(), rate)
    return path


@pytest.fixture(scope="module")
def tts(release):
    return TTS.from_pretrained(release, "cpu")


@pytest.fixture(scope="module")
def finetuned(release, environment):
    "A function: method → the folder of a run of three steps in the released format of tables."
    pytest.importorskip("peft", reason='finetuning needs pip install "metavoice[finetune]"')
    from metavoice.train.finetune import Finetuner

    tables = dict(train=str(environment / "train.csv"), val=str(environment / "val.csv"))
    for table, number in zip(tables.values(), (1, 2)):
        path = SAMPLES / f"awb_{number}.ogg"
        caption = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        Path(table).write_text(f"audio_files|captions\n{path}|{caption}\n", encoding="utf-8")
    steps = dict(steps=3, batch_size=1, log_steps=1, evaluate_steps=3, samples=0, report_to="none")
    made = {}

    def run(method):
        if method not in made:
            out = environment / method
            options = dict(method=method, model=str(release), precision="float32", dtype="float32", decoder=False)
            made[method] = Finetuner(out=str(out), **tables, **steps, **options).run()
        return made[method]

    return run


def is_sound(samples):
    return len(samples) > 2000 and bool(torch.as_tensor(samples).isfinite().all())


@pytest.mark.parametrize("vocoder", ("mbd", "codec"))
def test_the_legacy_format_says_the_same(release, tts, tmp_path, vocoder):
    options = dict(seed=1, vocoder=vocoder, **dict(steps=2) if vocoder == "mbd" else {})
    expected = tts.synthesise(TEXT, **options)
    for name in FILES:
        content = torch.load(release / name, weights_only=False)
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=False)
    legacy = TTS.from_pretrained(tmp_path, "cpu").synthesise(TEXT, **options)
    assert is_sound(expected.samples) and torch.equal(legacy.samples, expected.samples)


def test_a_stream_says_the_same(tts):
    options = dict(seed=2, vocoder="codec", denoise=False)
    parts = [part.samples for part in tts.stream(TEXT, **options)]
    assert is_sound(torch.cat(parts))


def test_speed_and_the_times_of_words(tts, monkeypatch):
    options = dict(seed=2, vocoder="codec", denoise=False, words=True)
    plain, fast = tts.synthesise(TEXT, **options), tts.synthesise(TEXT, speed=1.25, **options)
    assert len(fast.samples) == round(len(plain.samples) / 1.25)
    assert [word.text for word in fast.words] == TEXT.split()
    assert all(abs(a.start - 1.25 * b.start) < 1e-3 for a, b in zip(plain.words, fast.words))
    whole = list(tts.stream(TEXT, chunk=None, speed=1.25, **options))
    assert torch.equal(torch.cat([part.samples for part in whole]), fast.samples)
    parts = list(tts.stream(TEXT, chunk=0.2, speed=1.25, **options))
    words, duration = [word for part in parts for word in part.words], sum(part.duration for part in parts)
    assert [word.text for word in words] == TEXT.split() and len(parts) > 2  # a random model ends elsewhere in a stream
    assert 0 < words[-1].end <= duration
    diffused = tts.synthesise(TEXT, seed=2, steps=2, speed=0.5, denoise=False)
    assert abs(len(diffused.samples) - 2 * len(plain.samples)) <= 2 * tts.bundle.codec.hop
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(OptionError, match=r"PyAV.*metavoice\[media\]"):
        tts.synthesise(TEXT, speed=1.25, **options)
    assert tts.synthesise(TEXT, **options) == plain


def test_a_long_text(tts, tmp_path):
    read_aloud(tts, LONG, tmp_path / "long.flac", seed=0, vocoder="codec", denoise=False)
    samples, _ = soundfile.read(tmp_path / "long.flac")
    assert is_sound(samples) and len(tts.segments([LONG], seed=0)) > 2


def test_a_clone_needs_half_a_minute(tts, recording):
    from metavoice.core.errors import AudioError

    with pytest.raises(AudioError, match="30"):
        tts.synthesise(TEXT, recording)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_finetuned_model_speaks_in_its_own_voice(finetuned, method, tmp_path):
    "In the library, as a stream, by the command and by the server; its voice's recording is three seconds long."
    folder = finetuned(method)
    tts = TTS.from_pretrained(folder, "cpu")
    (own, recording), *_ = tts.bundle.voices.items()
    assert soundfile.info(recording).duration < 5 < tts.bundle.minimum_reference
    options = dict(seed=3, vocoder="codec", denoise=False)
    for voice in (None, own, recording):
        assert is_sound(tts.synthesise(TEXT, voice, **options).samples)
    assert is_sound(torch.cat([part.samples for part in tts.stream(TEXT, **options)]))
    out = tmp_path / "said.wav"
    flags = ["--vocoder", "codec", "--no-denoise", "--device", "cpu", "-q"]
    assert main(["synthesise", TEXT, "--model", str(folder), "-o", str(out), *flags]) == 0
    assert is_sound(soundfile.read(out)[0])
    served(tts, tmp_path)


def served(tts, folder):
    "Speak by the server, whole and as a stream."
    pytest.importorskip("fastapi", reason='needs pip install "metavoice[serve]"')
    import httpx

    from metavoice.serve.app import start_server
    from metavoice.serve.config import ServerConfig

    server = start_server(ServerConfig(port=0, threads=1, voices=str(folder / "voices")), tts)
    try:
        with httpx.Client(base_url=server.url, timeout=600) as http:
            models = http.get("/v1/models").json()["data"]
            body = dict(model=models[0]["id"], input=TEXT, seed=4)
            answer = http.post("/v1/audio/speech", json=body | dict(response_format="wav"))
            assert answer.status_code == 200, answer.text
            with http.stream("POST", "/v1/audio/speech", json=body | dict(response_format="pcm")) as stream:
                assert sum(map(len, stream.iter_bytes())) > 4000
    finally:
        server.stop()
        server.thread.join(60)


def test_the_release_is_served(tts, tmp_path):
    served(tts, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("legacy", (False, True))
def test_a_finetuned_first_stage_alone(release, finetuned, tmp_path, legacy):
    "In the original's format, given by its path, it speaks with the parts and the voices of the release."
    content = safe_torch_load(release / "first_stage.pt")
    state = load_bundle(finetuned("full"), "cpu", "float32").first.state_dict()
    path, out = tmp_path / "mine.pt", tmp_path / "said.wav"
    saved = content | dict(model={f"_orig_mod.{name}": tensor for name, tensor in state.items()})
    torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
    flags = ["--vocoder", "codec", "--no-denoise", "--device", "cpu", "--seed", "5", "-q"]
    arguments = ["synthesise", TEXT, "--model", str(release), "--first-stage-path", str(path), "-o", str(out), *flags]
    assert main(arguments) == 0 and is_sound(soundfile.read(out)[0])
    shutil.rmtree(tmp_path)
