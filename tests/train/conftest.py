"Fixtures of the tests of `metavoice.train`."
import os
from pathlib import Path

import pytest

from metavoice.bundle.load import load_bundle
from metavoice.bundle.write import write_random_bundle
from metavoice.train.corpus import write_demo_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def samples():
    "The folder of the six sample clips, each with a text file beside it."
    return ROOT / "nbs" / "samples"


@pytest.fixture(scope="session")
def nano():
    "The nano bundle on the CPU; tests must not change it."
    return load_bundle("nano", device="cpu")


@pytest.fixture(scope="session")
def demo_corpus(samples, tmp_path_factory):
    "The six sample clips as a corpus with evenly spaced words."
    return write_demo_corpus(tmp_path_factory.mktemp("demo") / "corpus", samples)


@pytest.fixture(scope="session")
def write_table():
    "A function that writes a table in the released format: (folder, *rows of (audio, text), name=…) → path."

    def write(folder, *rows, name="train.csv"):
        lines = [f"{audio}|{text}\n" for audio, text in rows]
        (folder / name).write_text("audio_files|captions\n" + "".join(lines), encoding="utf-8")
        return folder / name

    return write


# Finetuning: six clips and a model with random weights. The tests share the runs that they don't change.


@pytest.fixture(scope="session")
def finetune_environment(tmp_path_factory):
    "Set the environment for finetuning on the CPU, with one cache of encoded clips; returns it for other processes."
    patch = pytest.MonkeyPatch()
    patch.setenv("METAVOICE_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("ACCELERATE_USE_CPU", "true")
    yield {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    patch.undo()


@pytest.fixture(scope="session")
def finetune_data(samples, write_table, tmp_path_factory):
    "A folder with train.csv and val.csv: six clips in the released format, one of them to validate on."
    folder = tmp_path_factory.mktemp("data")
    rows = [(f, f.with_suffix(".txt").read_text(encoding="utf-8").strip()) for f in sorted(samples.glob("*.ogg"))]
    write_table(folder, *rows[1:], name="train.csv")
    write_table(folder, *rows[:1], name="val.csv")
    return folder


@pytest.fixture(scope="session")
def random_model(tmp_path_factory):
    "A bundle with random weights; tests must not change it."
    return write_random_bundle(tmp_path_factory.mktemp("model") / "random")


@pytest.fixture
def settings(finetune_data, random_model, finetune_environment):
    "Settings of a short finetuning run, without its folder."
    data = dict(train=str(finetune_data / "train.csv"), val=str(finetune_data / "val.csv"), model=str(random_model))
    steps = dict(steps=6, batch_size=2, learning_rate=1e-3, log_steps=2, evaluate_steps=3)
    return data | steps | dict(decoder=False, samples=0, report_to="none", precision="float32")


@pytest.fixture(scope="session")
def finetuned(finetune_data, random_model, finetune_environment, tmp_path_factory):
    "A function: method → (finished run of six steps, lines passed to on_log). Tests must not change the run."
    pytest.importorskip("peft", reason='finetuning needs pip install "metavoice[finetune]"')
    from metavoice.train.finetune import Finetuner

    data = dict(train=str(finetune_data / "train.csv"), val=str(finetune_data / "val.csv"), model=str(random_model))
    steps = dict(steps=6, batch_size=2, learning_rate=1e-3, log_steps=2, evaluate_steps=3)
    quiet, runs = dict(decoder=False, samples=0, report_to="none", precision="float32", dtype="float32"), {}

    def finetune(method):
        if method not in runs:
            lines, out = [], tmp_path_factory.mktemp(method) / "run"
            run = Finetuner(out=str(out), method=method, on_log=lines.append, **data, **steps, **quiet)
            assert run.run() == out / "bundle"
            runs[method] = run, lines
        return runs[method]

    return finetune


@pytest.fixture(scope="session")
def spoken_run(finetune_data, finetune_environment, tmp_path_factory):
    "The folder of a run of two steps from nano that spoke a sample and reported to TensorBoard."
    pytest.importorskip("peft", reason='finetuning needs pip install "metavoice[finetune]"')
    pytest.importorskip("tensorboard")
    from metavoice.train.finetune import Finetuner

    out = tmp_path_factory.mktemp("spoken") / "run"
    data = dict(train=str(finetune_data / "train.csv"), val=str(finetune_data / "val.csv"))
    steps = dict(steps=2, batch_size=2, learning_rate=1e-3, log_steps=2, evaluate_steps=2)
    samples = dict(samples=1, sample_texts=["The dog slept."], report_to="tensorboard")
    Finetuner(out=str(out), method="lora", **data, **steps, **samples, decoder=False, precision="float32").run()
    return out
