"Sessions and bound buffers, and the choice of the engine."
import copy
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from metavoice.core.errors import OptionError
from metavoice.models import onnx_runtime
from metavoice.models.onnx_graph import OnnxGraph
from metavoice.models.onnx_runtime import OnnxSession, pick_engine

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def product():
    graph = OnnxGraph("product")
    x = graph.input("x", torch.float32, ["rows", 3])
    graph.node("MatMul", x, graph.weight(torch.arange(6.).view(3, 2)), outputs=["y"])
    graph.output("y", torch.float32, ["rows", 2])
    return OnnxSession(graph)


def test_any_number_of_rows(product):
    for rows in (1, 4, 0):
        x = torch.randn(rows, 3)
        y, = product(x=x)
        assert torch.allclose(y, x @ torch.arange(6.).view(3, 2), atol=1e-6)
    y, = product(x=torch.randn(3, 5).T[:, :3])  # not contiguous
    assert y.shape == (5, 2)


def test_bound_buffers_are_read_anew(product):
    binding, x, y = product.bind(), torch.ones(2, 3), torch.zeros(2, 2)
    binding.input("x", x)
    binding.output("y", y)
    for factor in (1, 2):
        x.fill_(factor)
        binding.run()
        assert y.tolist() == [[6.*factor, 9.*factor]]*2
    with pytest.raises(OptionError, match="x isn't contiguous"):
        binding.input("x", torch.ones(3, 2).T)
    with pytest.raises(OptionError, match="isn't contiguous on the CPU"):
        binding.output("y", y.to("meta"))


def test_a_binding_keeps_its_buffers(product):
    binding = product.bind()
    binding.input("x", torch.ones(1, 3))
    y = torch.zeros(1, 2)
    binding.output("y", y)
    [torch.randn(1, 3) for _ in range(100)]
    binding.run()
    assert y.tolist() == [[6., 9.]]


def test_several_threads(product):
    wrong = []

    def work(n):
        binding, x, y = product.bind(), torch.full((1, 3), float(n)), torch.zeros(1, 2)
        binding.input("x", x)
        binding.output("y", y)
        for _ in range(200):
            binding.run()
            wrong.extend([n] if y.tolist() != [[6.*n, 9.*n]] else [])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_copy_shares_the_session(product):
    assert copy.deepcopy([product])[0] is product


@pytest.fixture
def without_onnxruntime(monkeypatch):
    monkeypatch.setattr(onnx_runtime, "import_onnxruntime", lambda: None)


def test_engines():
    assert [pick_engine(o, CPU) for o in (None, "torch", "onnx")] == ["onnx", "torch", "onnx"]
    assert pick_engine(None, torch.device("cuda")) == pick_engine("torch", torch.device("cuda")) == "torch"
    cases = ("jax", "cpu", "use torch or onnx"), ("onnx", "cuda", "runs on a CPU, not on cuda")
    for engine, device, message in cases:
        with pytest.raises(OptionError, match=message):
            pick_engine(engine, torch.device(device))


def test_no_telemetry(tmp_path):
    "onnxruntime keeps an identifier of the user when it is imported, if nobody forbids it."
    (tmp_path / "tmp").mkdir()
    own = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    own |= dict(HOME=str(tmp_path), TMPDIR=str(tmp_path / "tmp"), PYTHONPATH=str(ROOT))
    code = "from metavoice.models.onnx_runtime import import_onnxruntime; assert import_onnxruntime()"
    subprocess.run([sys.executable, "-c", code], env=own, check=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_without_onnxruntime(without_onnxruntime, product):
    assert pick_engine(None, CPU) == "torch"
    with pytest.raises(OptionError, match="pip install onnxruntime"):
        pick_engine("onnx", CPU)
    with pytest.raises(OptionError, match="pip install onnxruntime"):
        OnnxSession(OnnxGraph("nothing"))
