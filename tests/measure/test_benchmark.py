"Figures, their table, and the parts of a benchmark; what they measure is run by the notebook."
import json, subprocess

import pytest
import torch

from metavoice import benchmark as measures
from metavoice.measure.timing import BenchmarkResult, format_results, results_to_json
from metavoice.measure.benchmark_parts import bytes_per_step, random_gpt
from metavoice.measure.benchmark import BENCHMARK_PARTS, run_benchmarks
from metavoice.cli.benchmark import BENCHMARK_PART_CHOICES
from metavoice.cli.main import main
from metavoice.core.errors import MetaVoiceError, OptionError
from metavoice.models.gpt import GPTConfig

TINY = GPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=64, swiglu_multiple_of=64)


def test_the_command_offers_all_parts(): assert BENCHMARK_PART_CHOICES == tuple(BENCHMARK_PARTS)

@pytest.mark.parametrize("options,words", [(dict(size="7b"), "unknown size '7b'; use 1b or nano"), (dict(parts=["lunch"]), "unknown part 'lunch'; use machine, decoding")])
def test_refused(options, words):
    with pytest.raises(OptionError, match=words): run_benchmarks(**options)

def test_parts_of_a_size_and_parts_by_name(monkeypatch):
    run = []
    for name in BENCHMARK_PARTS: monkeypatch.setitem(BENCHMARK_PARTS, name, lambda quick, bundle=None, name=name: run.append(name) or [BenchmarkResult(name, 1.)])
    for options, wanted in ((dict(), set(BENCHMARK_PARTS)), (dict(size="nano"), {"machine", "speaking", "book"}), (dict(size="1b"), set(BENCHMARK_PARTS)-{"speaking", "book"}), (dict(parts=["book", "machine"]), {"book", "machine"})):
        run.clear()
        assert {f.what for f in run_benchmarks(**options)} == set(run) == wanted

def test_what_fails_is_in_the_table(monkeypatch):
    def broken(quick): yield BenchmarkResult("first", 2., "×", 1.5); raise MetaVoiceError("no such\nkernel")
    def dead(quick): raise subprocess.CalledProcessError(1, ["python"])
    monkeypatch.setattr(measures, "PARTS", dict(broken=broken, dead=dead))
    first, failed, other = run_benchmarks(parts=["broken", "dead"])
    assert first.reached and failed.value is None and failed.note == "MetaVoiceError: no such kernel" and "exit status 1" in other.note
    assert "reached" in format_results([first, failed])[1] and json.loads(results_to_json([first, failed]))["figures"][1]["value"] is None

def test_a_step_reads_all_matrices_and_each_rows_past():
    model = random_gpt(TINY, torch.float32)
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "wpe" not in n and "speaker" not in n)
    assert bytes_per_step(model, 1, 0) == 4*matrices and bytes_per_step(model, 3, 10) - bytes_per_step(model, 3, 0) == 3*10*2*2*64*4

def test_the_command(capsys, tmp_path):
    assert main(["benchmark", "--part", "machine", "--quick", "--json", str(tmp_path / "f.json")]) == 0
    out, err = capsys.readouterr()
    assert "reading memory" in out and "GB/s" in err and json.loads((tmp_path / "f.json").read_text())["figures"][0]["unit"] == "GB/s"
