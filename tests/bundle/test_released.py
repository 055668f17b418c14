"Reading the released files: no pickle is executed, and configurations are converted."
import pickle
import sys

import pytest
import torch
from helpers import raises_one_line

from metavoice.bundle.load import load_bundle
from metavoice.bundle.released import (
    convert_band_config,
    convert_stage_config,
    load_released_mbd,
    safe_torch_load,
    settings_to_container,
)
from metavoice.core.errors import BundleError

MBD = "mbd_comp_8.pt"
PARTS = {
    "first_stage.pt": "first",
    "second_stage.pt": "second",
    "speaker_encoder.pt": "speaker_encoder",
    MBD: "mbd",
}


class Opening:
    "An object whose pickle creates a file."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class Evaluating:
    "An object whose pickle evaluates code that creates a file."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w')",)


class Running:
    "An object whose pickle runs a command that creates a file."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("make", (Opening, Evaluating, Running))
def test_the_malicious_pickles_would_run(tmp_path, make):
    "The tests below prove something only if `pickle` itself runs these objects."
    pickle.loads(pickle.dumps(make(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("where", ("top", "cfg", "builtins"))
def test_malicious_diffusion_does_not_run(tmp_path, where):
    ran, path, malicious = tmp_path / "ran", tmp_path / MBD, Opening(tmp_path / "ran")
    band = dict(cfg=malicious, model_state={}, processor_state={})
    cases = dict(
        top=malicious, cfg={"n_bands": 1, "sample_rate": 24000, 0: dict(band, cfg=malicious)}, builtins=Evaluating(ran)
    )
    torch.save(cases[where], path)
    with pytest.raises(BundleError, match="would run"):
        load_released_mbd(path)
    assert not ran.exists()


@pytest.mark.parametrize("where", ("meta", "config", "optimizer", "weight", "whole", "tokenizer"))
@pytest.mark.parametrize("name", PARTS)
def test_malicious_part_does_not_run(release, tmp_path, name, where):
    ran = tmp_path / "ran"
    content = torch.load(release / name, weights_only=True) if name != MBD else {}
    if where == "whole":
        content = Running(ran)
    elif where == "weight":
        content.setdefault("model", {})["transformer.wpe.weight"] = Running(ran)
    elif where == "tokenizer":
        content.setdefault("meta", {})["tokenizer"] = Running(ran)
    else:
        content[where] = Running(ran)
    torch.save(content, release / name)
    bundle = load_bundle(release, "cpu")
    for use in (lambda: getattr(bundle, PARTS[name]), bundle.info):
        with raises_one_line(BundleError, name, "would run", "system"):
            use()
    assert not ran.exists()


def test_a_plain_pickle_is_rejected(tmp_path):
    path = tmp_path / "old.pt"
    path.write_bytes(pickle.dumps(Opening(tmp_path / "ran")))
    with pytest.raises(BundleError, match="can't read"):
        load_released_mbd(path)
    assert not (tmp_path / "ran").exists()


def test_safe_globals_are_restored(golden):
    before = set(torch.serialization.get_safe_globals())
    content = safe_torch_load(golden / MBD)
    assert type(content[0]["cfg"]).__name__ == "Inert" and "omegaconf" not in sys.modules
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("keep", (0, 10, 5000, 0.5, 0.99))
def test_truncated_diffusion(golden, tmp_path, keep):
    data = (golden / MBD).read_bytes()
    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(BundleError, match="can't read"):
        load_released_mbd(truncated)


def test_missing_diffusion(tmp_path):
    with pytest.raises(BundleError, match="can't read"):
        load_released_mbd(tmp_path / "absent.pt")


def test_diffusion_with_a_transformer_is_rejected(golden):
    config = settings_to_container(safe_torch_load(golden / MBD)[0]["cfg"])
    config["diffusion_unet"]["transformer"] = True
    with pytest.raises(BundleError, match="transformer"):
        convert_band_config(config)


def test_stage_settings():
    "Settings of the training override those of the model; a model without a speaker has no embedding."

    def convert(**content):
        return convert_stage_config(content)

    meta = dict(speaker_cond=True, speaker_emb_size=128)
    assert convert(model_args=dict(causal=True), meta=meta, config=dict(causal=False)).causal is False
    assert convert(model_args=dict(causal=False), meta=meta).causal is False
    assert convert(model_args={}, meta=meta).speaker_emb_size == 128
    assert convert(model_args={}, meta=dict(speaker_cond=False, speaker_emb_size=256)).speaker_emb_size is None
