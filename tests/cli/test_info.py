"`metavoice info`."
import json

from metavoice.cli.info import describe_engine
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
