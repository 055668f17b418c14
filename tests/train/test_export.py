"Adapters: loading without peft, merging, quantising, and a base that was changed or removed."
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from metavoice.bundle.load import load_bundle
from metavoice.bundle.write import write_random_bundle
from metavoice.core.errors import BundleError
from metavoice.train.export import write_adapter, write_merged
from metavoice.train.publish import merge_adapter

PROBE = torch.tensor([[[2100, 2200, 5, 1030, 7], [1, 2, 0, 0, 0], *[[0, 0, 3, 3, 4]] * 3]])  # text, speech; context
SPEAKER = torch.nn.functional.normalize(torch.arange(256.0)[None], dim=-1)


def logits(path, **options):
    return load_bundle(path, "cpu", "float32", **options).first(PROBE, SPEAKER)[0]


@pytest.fixture(scope="module")
def adapter(finetuned):
    "The folder of a run with the method lora."
    return finetuned("lora")[0].out


@pytest.mark.parametrize("method", ["lora", "last"])
def test_defaults_of_the_text_are_kept_if_they_differ(finetuned, random_model, tmp_path, method):
    run, _ = finetuned("lora")
    base = load_bundle(random_model, "cpu", "float32")
    for changes, expected in (({}, {}), (dict(language="en-GB"), dict(language="en-GB")), (dict(spoken=False),) * 2):
        config = replace(run.config, **dict(spoken=None, language=None) | changes)
        if method == "lora":
            write_adapter(tmp_path / "out", base, {}, name="x", config=config, voices={})
        else:
            write_merged(tmp_path / "out", base, {}, name="x", config=config, voices={})
        assert load_bundle(tmp_path / "out", "cpu").defaults == base.defaults | expected


def test_a_merged_adapter_computes_the_same(adapter, tmp_path):
    torch.testing.assert_close(logits(merge_adapter(adapter, tmp_path / "merged", "float32")), logits(adapter))


@pytest.mark.slow
def test_an_adapter_speaks_without_peft(adapter, finetune_environment):
    code = (
        "import sys; sys.modules['peft'] = None\n"
        "from metavoice.generate.tts import TTS\n"
        f"tts = TTS.from_pretrained({str(adapter)!r})\n"
        "print(tts.codes(['Good morning.'], seed=1)[0][0].shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=finetune_environment)
    assert done.returncode == 0 and "torch.Size([8," in done.stdout, done.stderr[-1000:]


def test_an_adapter_is_added_before_the_weights_are_quantised(adapter, random_model):
    pytest.importorskip("torchao")
    eight, whole, base = logits(adapter, quantise="int8", engine="torch"), logits(adapter), logits(random_model)
    assert (eight - whole).abs().mean() < 0.3 * (whole - base).abs().mean()


def test_a_changed_or_missing_base_is_reported(adapter, random_model, tmp_path):
    shutil.copytree(adapter, tmp_path / "run")
    path = tmp_path / "run" / "bundle" / "bundle.json"
    manifest = json.loads(path.read_text())

    def set_base(folder):
        path.write_text(json.dumps(manifest | dict(base=manifest["base"] | dict(model=str(folder)))))

    shutil.copytree(random_model, tmp_path / "base")
    set_base(tmp_path / "base")
    assert torch.equal(logits(tmp_path / "run"), logits(adapter))
    write_random_bundle(tmp_path / "base", seed=2)
    with pytest.raises(BundleError, match="was trained on another"):
        load_bundle(tmp_path / "run", "cpu")
    set_base(tmp_path / "gone")
    with pytest.raises(BundleError, match="base of 'run' can't be found"):
        load_bundle(tmp_path / "run", "cpu")
