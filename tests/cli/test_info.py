"`metavoice info`."
import json

import torch

from metavoice.audio.encode import encode_audio
from metavoice.cli.info import describe_engine
from metavoice.core.provenance import SYNTHETIC_SPEECH, Provenance
from metavoice.models import onnx_runtime


def test_info(run):
    code, out, err = run("info")
    assert (code, err) == (0, "") and out.startswith("nano, from ") and "first_stage" not in out
    for word in ("tokeniser", "speaker_encoder", "Apache-2.0", "voices:", "2.5 s"):
        assert word in out, out
    about = json.loads(run("info", "--json")[1])
    assert about["name"] == "nano" and about["parts"]["first"]["parameters"] > 1e5


def test_the_engine(run, monkeypatch):
    assert "in float32 with onnxruntime;" in run("info")[1]
    assert describe_engine(dict(engine="onnx", step_engine="torch")) == "onnxruntime, its first stage with PyTorch"
    monkeypatch.setattr(onnx_runtime, "import_onnxruntime", lambda: None)
    assert "in float32 with PyTorch;" in run("info")[1]


def test_what_a_file_says(run, refused, tmp_path):
    sound, origin = 0.1 * torch.sin(torch.arange(24000) / 20), Provenance("nano", "mix\x1b[31m")
    for suffix in ("wav", "flac", "ogg", "mp3"):
        (tmp_path / f"a.{suffix}").write_bytes(encode_audio(sound, 24000, suffix, origin))
        code, out, err = run("info", tmp_path / f"a.{suffix}")
        assert (code, err) == (0, "") and "AI-generated speech by metavoice" in out and "model nano, voice mix" in out
        assert "\x1b" not in out
    about = json.loads(run("info", tmp_path / "a.ogg", "--json")[1])
    assert about["synthetic"] and about["digital_source_type"] == SYNTHETIC_SPEECH and about["voice"] == origin.voice
    (tmp_path / "b.wav").write_bytes(encode_audio(sound, 24000))
    assert "its tags don't say that it is synthetic" in run("info", tmp_path / "b.wav")[1]
    (tmp_path / "c.wav").write_text("no sound")
    (tmp_path / "d.safetensors").write_text("no voice")
    for argv, word in (
        (["nowhere.wav"], "no such file"), ([tmp_path / "c.wav"], "isn't audio"), (["a.wav", "--memory"], "leave out"),
        ([tmp_path / "d.safetensors"], "can't read the voice"), (["a", "--dtype", "float32"], "belongs to --memory"),
    ):
        refused("info", *argv, words=[word])
