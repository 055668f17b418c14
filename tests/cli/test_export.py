"`metavoice export`."
import json
from pathlib import Path


def test_export(run, refused, make_nano, tmp_path):
    model = make_nano(tmp_path/"model", voices={})
    code, out, err = run("export", "--model", model, "--format", "onnx", "-o", "onnx", "-q")
    assert (code, err) == (0, "")
    names = {path.name for path in Path("onnx").iterdir()}
    assert {"first.onnx", "denoiser.onnx", "graphs.json", "README.md", "example.json"} <= names
    for name in names:
        assert name in out
    assert json.loads(Path("onnx/example.json").read_text())["voice"] == "none"
    refused("export", "-o", "no/onnx", words=["there is no folder"])
    refused("export", "-o", "onnx", "--model", "/nowhere", words=["there is no model '/nowhere'"])
    refused("export", words=["required: -o/--output"])
    refused("export", "-o", "x", "--format", "coreml", words=["--format", "'coreml'"])
