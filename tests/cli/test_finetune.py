"`metavoice finetune`, `merge` and `info` on a short run, the check of recordings, and Weights & Biases."
import json

import pytest

from metavoice.bundle.write import write_random_bundle
from metavoice.cli import main

from .conftest import ROOT


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    "Settings of a run of six steps on six clips, one of them to validate on, from a model with random weights."
    pytest.importorskip("peft", reason='finetuning needs pip install "metavoice[finetune]"')
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("finetune")
    patch.setenv("METAVOICE_CACHE", str(folder/"cache"))
    patch.setenv("ACCELERATE_USE_CPU", "true")
    clips = sorted((ROOT/"nbs"/"samples").glob("*.ogg"))
    rows = [f"{f}|{f.with_suffix('.txt').read_text(encoding='utf-8').strip()}" for f in clips]
    for name, part in (("train", rows[1:]), ("val", rows[:1])):
        (folder/f"{name}.csv").write_text("\n".join(["audio_files|captions", *part, ""]), encoding="utf-8")
    data = dict(train=str(folder/"train.csv"), val=str(folder/"val.csv"))
    steps = dict(steps=6, batch_size=2, learning_rate=1e-3, log_steps=2, evaluate_steps=3)
    model = str(write_random_bundle(folder/"model"))
    yield data | steps | dict(model=model, decoder=False, samples=0, report_to="none", precision="float32")
    patch.undo()


def test_finetune_info_and_merge(settings, tmp_path, run):
    (tmp_path/"settings.json").write_text(json.dumps(settings))
    command = ["finetune", "--config", tmp_path/"settings.json", "--out", tmp_path/"my voice"]
    code, out, _ = run(*command)
    assert code == 0 and "try it: metavoice synthesise" in out and "5 recordings" in out
    code, out, _ = run("info", "--model", tmp_path/"my voice")
    assert code == 0 and "my-voice" in out
    code, _, err = run(*command, "-q")
    assert code == 2 and "there is a run in" in err
    assert run("merge", tmp_path/"my voice", "--out", tmp_path/"whole")[0] == 0


def test_check_lists_problems_and_trains_nothing(settings, tmp_path, run):
    (tmp_path/"bad.csv").write_text(open(settings["train"], encoding="utf-8").read() + "missing.wav|Yes.\n")
    command = ["finetune", "--train", tmp_path/"bad.csv", "--model", settings["model"], "-q", "--out", tmp_path/"run"]
    code, out, _ = run(*command, "--val", settings["val"], "--check")
    assert code == 1 and "bad.csv:7" in out and not (tmp_path/"run").exists()
    code, _, err = run(*command)
    assert code == 2 and "bad.csv:7" in err


@pytest.mark.slow
def test_samples_and_losses_are_reported_to_wandb(settings, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="pip install wandb")
    for name, value in dict(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(tmp_path)).items():
        monkeypatch.setenv(name, value)
    samples = dict(model="nano", report_to="wandb", samples=1, sample_texts=["The dog slept."])
    (tmp_path/"settings.json").write_text(json.dumps(settings | samples | dict(steps=2, evaluate_steps=2)))
    assert main(["finetune", "--config", str(tmp_path/"settings.json"), "--out", str(tmp_path/"run"), "-q"]) == 0
    kept = [f for f in tmp_path.rglob("offline-run-*/**/*") if f.is_file()]
    assert [f.suffix for f in kept if f.stat().st_size > 1000].count(".wandb") == 1
    assert any("sample_1" in f.name and f.suffix == ".wav" for f in kept)
    assert any("sample_1_spectrogram" in f.name and f.suffix == ".png" for f in kept)
