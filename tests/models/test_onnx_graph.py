"Our writer of ONNX files against the package `onnx`."
import numpy as np
import pytest
import torch

from metavoice.core.errors import OptionError
from metavoice.models.onnx_graph import MICROSOFT, OnnxGraph

onnx = pytest.importorskip("onnx")
ReferenceEvaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator


def parsed(graph):
    model = onnx.load_from_string(graph.serialise())
    onnx.checker.check_model(model)
    return model


def test_the_package_reads_what_was_written():
    graph = OnnxGraph("all of it")
    x = graph.input("x", torch.float32, ["batch", 3])
    n = graph.input("n", torch.int64, [])
    y = graph.node("Concat", x, x, axis=-1)
    low, high = graph.node("Split", y, outputs=["low", "high"], axis=-1)
    z = graph.node("Cast", graph.node("Add", n, graph.weight(5)), to=1)
    graph.node("Elu", graph.node("Mul", low, z), outputs=["out"], alpha=.25)
    for name in ("high", "out"):
        graph.output(name, torch.float32, ["batch", 3])
    model = parsed(graph)
    assert model.graph.name == "all of it"
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17), (MICROSOFT, 1)]
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", 3]
    assert not model.graph.input[1].type.tensor_type.shape.dim
    assert model.graph.node[0].attribute[0].i == -1
    assert model.graph.node[-1].attribute[0].f == .25
    run = ReferenceEvaluator(model)
    a = np.float32([[1, -2, 3]])
    high, out = run.run(None, dict(x=a, n=np.int64(-3)))
    assert np.allclose(high, a) and np.allclose(out, np.where(2*a < 0, .25*np.expm1(2*a), 2*a))


@pytest.mark.parametrize("value", [
    torch.randn(2, 3), torch.tensor(7.), torch.randn(4).half(), torch.arange(300), torch.tensor([True, False]),
    torch.arange(3, dtype=torch.int32), np.arange(6.).astype("f").reshape(2, 3), [1, -2], [.5, 1.], 3,
    torch.randn(3, 4).T, torch.zeros(0, 2),
], ids=lambda o: f"{type(o).__name__}")
def test_weights(value):
    graph = OnnxGraph("weights")
    name = graph.weight(value)
    graph.output(name, torch.float32, [])
    stored, = onnx.load_from_string(graph.serialise()).graph.initializer
    assert np.array_equal(onnx.numpy_helper.to_array(stored), torch.as_tensor(value).numpy()) and stored.name == name


@pytest.mark.parametrize("value,field", [
    (3, "i"), (-3, "i"), (2**62, "i"), (.5, "f"), ("same", "s"), ([1, -2], "ints"), ([.5, 2], "floats"),
    ([1, .5], "floats"),
])
def test_attributes(value, field):
    graph = OnnxGraph("attributes")
    graph.node("Any", "x", value=value, absent=None)
    attribute, = onnx.load_from_string(graph.serialise()).graph.node[0].attribute
    found = getattr(attribute, field)
    assert found == (value.encode() if field == "s" else value) and attribute.name == "value"
    assert onnx.helper.get_attribute_value(attribute) == found  # its type is right


def test_inputs_and_outputs_that_are_left_out():
    graph = OnnxGraph("gaps")
    graph.node("Any", "x", "", "y", outputs=["a", "", "b"], domain=MICROSOFT)
    node, = onnx.load_from_string(graph.serialise()).graph.node
    assert (list(node.input), list(node.output), node.domain) == (["x", "", "y"], ["a", "", "b"], MICROSOFT)


def test_a_tensor_is_stored_once():
    graph, w = OnnxGraph("once"), torch.randn(3)
    assert graph.weight(w) == graph.weight(w) and len(graph.weights) == 1
    assert graph.weight(3) != graph.weight(3)


def test_errors():
    graph = OnnxGraph("wrong")
    with pytest.raises(OptionError, match="a weight is bfloat16; use one of float32"):
        graph.weight(torch.zeros(2, dtype=torch.bfloat16))
    with pytest.raises(OptionError, match="attribute axis is True; use a number"):
        graph.node("Split", "x", axis=True)
