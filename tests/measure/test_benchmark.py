"Results and their table, and the selection of benchmark parts; the notebooks run the parts."
import json
import subprocess
from dataclasses import replace

import pytest
import torch

from metavoice.cli import main
from metavoice.core.errors import MetaVoiceError, OptionError
from metavoice.measure import benchmark, benchmark_device
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


def test_a_device_is_measured_instead(monkeypatch):
    seen = []

    def measure(device, quick, bundle):
        seen.append((device, quick, bundle))
        yield BenchmarkResult("bandwidth", 3.)

    monkeypatch.setattr(benchmark, "benchmark_device", measure)
    result, = run_benchmarks("1b", quick=True, bundle="folder", device="cuda")
    assert result.value == 3. and seen == [("cuda", True, "folder")]
    for wrong in (dict(size="nano"), dict(parts=["machine"])):
        with pytest.raises(OptionError, match="device measures the released shapes"):
            run_benchmarks(device="cpu", **wrong)


class Clock:
    "Every look at it takes 70 seconds."

    def __init__(self):
        self.now = 0.

    def perf_counter(self):
        self.now += 70
        return self.now


def test_what_exceeds_five_minutes_is_left_out(monkeypatch):
    "Each part is in the table: with a figure, or with the reason why not."
    def refused(self):
        raise OptionError("can't compile here")
        yield

    def measured(self, weights=None):
        yield BenchmarkResult("measured", 1.)

    monkeypatch.setattr(benchmark_device, "time", Clock())
    monkeypatch.setattr(benchmark_device, "device_bandwidth", lambda device, size: 1e9)
    monkeypatch.setattr(benchmark_device.DeviceBenchmark, "equal_tokens", refused)
    for name in ("steps", "speech"):
        monkeypatch.setattr(benchmark_device.DeviceBenchmark, name, measured)
    results = list(benchmark_device.benchmark_device("cpu"))
    bandwidth, steps, equal, speech, int8, int4 = results
    assert bandwidth.value == 1 and steps.value == speech.value == 1
    assert (equal.what, equal.value, equal.note) == ("1B: equal tokens", None, "OptionError: can't compile here")
    assert int4.value is None and int4.note == "not measured within 300 s"
    json.loads(results_to_json(results))


def test_a_small_model_on_a_device(monkeypatch):
    "Eager mode alone: what is printed for each number of texts."
    seen = []

    def prepare(model, rows, layout, **options):
        seen.append(rows)
        model.compiling = False

    monkeypatch.setattr(benchmark_device, "PROMPT_LENGTH", 4)
    monkeypatch.setattr(benchmark_device, "prepare_engines", prepare)
    model = random_gpt(replace(TINY, vocab_sizes=[2562]), torch.float32)
    results = list(benchmark_device.benchmark_steps(model, "tiny", 1e9, (1, 3), 8, float("inf")))
    shares = [o for o in results if "share" in o.what]
    assert [o.what for o in shares] == [
        f"tiny, {mode}: {texts}, share of the bandwidth"
        for mode in ("eager", "compiled")
        for texts in ("1 text", "3 texts")
    ]
    assert all(o.value > 0 for o in results) and seen == [3]
