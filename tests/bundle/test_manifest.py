"Invalid manifests are rejected, and reading weights needs no second copy of them in memory."
import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import raises_one_line
from safetensors.torch import save_file

from metavoice.bundle.load import load_bundle
from metavoice.bundle.write import export_state_dict
from metavoice.core.errors import BundleError
from metavoice.models.gpt import GPT, GPTConfig


@pytest.mark.parametrize(
    "change, word",
    (
        (lambda m: m.update(format=2), "format 2"),
        (lambda m: m.pop("format"), "format None"),
        (lambda m: m.update(parts=[]), "no parts"),
        (lambda m: m["parts"].update(third=dict(kind="gpt")), "'third'"),
        (lambda m: m["parts"]["first"].update(kind="pickle"), "'pickle'"),
        (lambda m: m["parts"]["first"]["config"].update(n_layers=3), "n_layers"),
        (lambda m: m["parts"]["first"].pop("config"), "config"),
        (lambda m: m["parts"]["first"]["config"].update(causal=False), "causal"),
        (lambda m: m["parts"]["first"]["config"].update(norm_type="no"), "'no'"),
        (lambda m: m["parts"]["codec"]["config"].update(width="wide"), "codec.safetensors"),
        (lambda m: m["parts"]["mbd"]["config"].pop("bands"), "bands"),
        (lambda m: m["parts"]["first"].update(file="../../first_stage.safetensors"), "inside of"),
        (lambda m: m["parts"]["first"].update(file=7), "file can't be 7"),
        (lambda m: m.update(layout=dict(text_ranks=300)), "300 ranks"),
        (lambda m: m.update(layout=dict(size=1)), "size"),
        (lambda m: m.update(minimum_reference="long"), "'long'"),
        (lambda m: m.update(voices=["a"]), "voices"),
        (lambda m: m.update(defaults=None), "defaults"),
    ),
)
def test_invalid_manifests(bundle_copy, change, word, read_all):
    manifest = json.loads((bundle_copy / "bundle.json").read_text())
    change(manifest)
    (bundle_copy / "bundle.json").write_text(json.dumps(manifest))
    with raises_one_line(BundleError, word):
        read_all(bundle_copy)


@pytest.mark.parametrize("text", ("", "{", "[]", "7", "null", '{"parts": {}}', "\x00", "{'format': 1}"))
def test_files_that_are_not_a_manifest(bundle_copy, text):
    (bundle_copy / "bundle.json").write_text(text)
    with raises_one_line(BundleError, "bundle.json"):
        load_bundle(bundle_copy)


def test_manifest_in_another_encoding(bundle_copy):
    (bundle_copy / "bundle.json").write_bytes(b"\xff\xfe{\x00")
    with raises_one_line(BundleError, "bundle.json"):
        load_bundle(bundle_copy)


MEASURE_PEAK = """
import gc, json, sys, torch
from pathlib import Path
from metavoice.bundle.manifest import read_weights
from metavoice.core.devices import malloc_trim
from metavoice.models.gpt import GPTConfig, load_gpt

def peak_mb():
    lines = Path('/proc/self/status').read_text().splitlines()
    return int([line for line in lines if line.startswith('VmHWM')][0].split()[1]) / 1024

folder, config, results = Path(sys.argv[1]), GPTConfig(**json.loads(sys.argv[2])), []
for name, dtype in json.loads(sys.argv[3]):
    gc.collect()
    malloc_trim()
    Path('/proc/self/clear_refs').write_text('5')
    before = peak_mb()
    model = load_gpt(read_weights(folder / name, getattr(torch, dtype), torch.device('cpu')), config)
    results.append([peak_mb() - before, sum(p.nbytes for p in model.parameters()) / 2**20])
    del model
print(json.dumps(results))
"""


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory is measured by Linux's /proc"
)
def test_weights_are_not_held_twice(tmp_path):
    "200 MB of random weights in both formats; the peak of memory is at most 1.3 times the weights."
    shape = dict(n_layer=4, n_head=8, n_embd=1024, block_size=64)
    model = GPT(GPTConfig(**shape)).requires_grad_(False)
    assert 190 < sum(p.nbytes for p in model.parameters()) / 1e6 < 230
    torch.save(dict(model=model.state_dict()), tmp_path / "large.pt")
    save_file(export_state_dict(model, torch.float16, "large"), tmp_path / "large.safetensors")
    cases = [("large.pt", "float32"), ("large.pt", "float16"), ("large.safetensors", "float32")]
    args = [str(tmp_path), json.dumps(shape), json.dumps(cases)]
    out = subprocess.run([sys.executable, "-c", MEASURE_PEAK, *args], capture_output=True, text=True, check=True)
    for (name, dtype), (peak, weights) in zip(cases, json.loads(out.stdout.splitlines()[-1])):
        print(f"{name} as {dtype}: peak {peak:.0f} MB for {weights:.0f} MB of weights")
        assert weights <= peak <= 1.3 * weights, (name, dtype)
