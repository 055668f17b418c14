"Results and their table, and the selection of benchmark parts; the notebooks run the parts."
import json
import subprocess

import pytest
import torch

from metavoice.cli import main
from metavoice.core.errors import MetaVoiceError, OptionError
from metavoice.measure import benchmark
from metavoice.measure.benchmark import BENCHMARK_PARTS, run_benchmarks
from metavoice.measure.benchmark_model import bytes_per_step, random_gpt
from metavoice.measure.results import BenchmarkResult, format_results, results_to_json
from metavoice.models.gpt import GPTConfig

TINY = GPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=64, swiglu_multiple_of=64)


@pytest.mark.parametrize("options, message", [
    (dict(size="7b"), "unknown size '7b'; use 1b or nano"),
    (dict(parts=["lunch"]), "unknown part 'lunch'; use machine, decoding"),
])
def test_unknown_size_or_part(options, message):
    with pytest.raises(OptionError, match=message):
        run_benchmarks(**options)


@pytest.mark.parametrize("options, expected", [
    (dict(), set(BENCHMARK_PARTS)),
    (dict(size="nano"), {"machine", "speaking", "book"}),
    (dict(size="1b"), set(BENCHMARK_PARTS) - {"speaking", "book"}),
    (dict(parts=["book", "machine"]), {"book", "machine"}),
])
def test_parts_by_size_and_by_name(monkeypatch, options, expected):
    ran = []

    def part(name):
        def run(quick, bundle=None):
            ran.append(name)
            return [BenchmarkResult(name, 1.)]
        return run

    for name in BENCHMARK_PARTS:
        monkeypatch.setitem(BENCHMARK_PARTS, name, part(name))
    assert {o.what for o in run_benchmarks(**options)} == set(ran) == expected


def test_failed_part_is_in_the_table(monkeypatch):
    def broken(quick):
        yield BenchmarkResult("first", 2., "×", 1.5)
        raise MetaVoiceError("no such\nkernel")

    def dead(quick):
        raise subprocess.CalledProcessError(1, ["python"])

    monkeypatch.setattr(benchmark, "BENCHMARK_PARTS", dict(broken=broken, dead=dead))
    first, failed, other = run_benchmarks(parts=["broken", "dead"])
    assert first.reached
    assert failed.value is None and failed.note == "MetaVoiceError: no such kernel"
    assert "exit status 1" in other.note
    assert "reached" in format_results([first, failed])[1]
    assert json.loads(results_to_json([first, failed]))["figures"][1]["value"] is None


def test_step_reads_all_matrices_and_the_keys_and_values_of_each_row():
    model = random_gpt(TINY, torch.float32)
    matrices = sum(
        p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "wpe" not in n and "speaker" not in n
    )
    assert bytes_per_step(model, 1, 0) == 4 * matrices
    assert bytes_per_step(model, 3, 10) - bytes_per_step(model, 3, 0) == 3 * 10 * 2 * 2 * 64 * 4


def test_benchmark_command(capsys, tmp_path):
    assert main(["benchmark", "--part", "machine", "--quick", "--json", str(tmp_path / "f.json")]) == 0
    out, err = capsys.readouterr()
    assert "memory bandwidth" in out and "GB/s" in err
    assert json.loads((tmp_path / "f.json").read_text())["figures"][0]["unit"] == "GB/s"
