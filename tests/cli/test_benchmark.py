"`metavoice benchmark` and `metavoice random`."
from metavoice.measure.benchmark import BENCHMARK_PARTS


def test_the_command_offers_all_parts(run):
    code, out, err = run("benchmark", "--help")
    assert (code, err) == (0, "") and ", ".join(BENCHMARK_PARTS) in " ".join(out.split())


def test_unknown_parts(refused):
    refused("benchmark", "--part", "lunch", words=["'lunch'", "'machine'"])


def test_random_weights(run):
    code, out, err = run("random", "--out", "noise", "--dtype", "float32", "--seed", 1)
    assert code == 0 and "random weights" in out, err
    assert "noise" in run("info", "--model", "noise")[1]
