"Variants of the released files: torch's legacy format, leftovers of a training, and a first stage alone."
import argparse

import numpy as np
import pytest
import torch
from helpers import raises_one_line

from metavoice.bundle.load import load_bundle
from metavoice.bundle.released import safe_torch_load, settings_to_container
from metavoice.core.errors import BundleError

FILES = {"first_stage.pt": "first", "second_stage.pt": "second", "speaker_encoder.pt": "speaker_encoder"}


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


class Creating:
    "An object whose pickle creates a file."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", FILES)
def test_the_legacy_format_loads_the_same(release, name):
    part = FILES[name]
    zipped = getattr(load_bundle(release, "cpu"), part).state_dict()
    save_legacy(torch.load(release / name, weights_only=True), release / name)
    bundle = load_bundle(release, "cpu")
    legacy = getattr(bundle, part).state_dict()
    assert legacy.keys() == zipped.keys() and all(torch.equal(legacy[k], zipped[k]) for k in zipped)
    assert bundle.info()["parts"][part]["parameters"] > 0


@pytest.mark.parametrize("name", FILES)
def test_a_malicious_legacy_file_does_not_run(release, tmp_path, name):
    content = torch.load(release / name, weights_only=True)
    save_legacy(content | dict(extra=Creating(tmp_path / "ran")), release / name)
    bundle = load_bundle(release, "cpu")
    for use in (lambda: getattr(bundle, FILES[name]), bundle.info):
        with raises_one_line(BundleError, name, "would run", "io.open"):
            use()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", (0, 10, 200, 0.5, 0.99))
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_legacy_file(release, name, keep):
    save_legacy(torch.load(release / name, weights_only=True), release / name)
    data = (release / name).read_bytes()
    (release / name).write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with raises_one_line(BundleError, name):
        getattr(load_bundle(release, "cpu"), FILES[name])


@pytest.mark.parametrize("zipped", (True, False))
def test_leftovers_of_a_training(release, tmp_path, zipped):
    "NumPy's scalars become numbers; settings as a namespace become a dict; a path is inert."
    settings = argparse.Namespace(causal=True, rates=[1e-4, 2e-4], inner=argparse.Namespace(a=1))
    numbers = dict(best_val_loss=np.float64(0.25), iter_num=np.int64(-3), small=np.float16(0.5), yes=np.bool_(True))
    content = torch.load(release / "first_stage.pt", weights_only=True)
    content |= numbers | dict(config=settings, data=tmp_path, model_args=argparse.Namespace(**content["model_args"]))
    torch.save(content, release / "first_stage.pt", _use_new_zipfile_serialization=zipped)
    read = safe_torch_load(release / "first_stage.pt")
    assert {name: read[name] for name in numbers} == numbers and type(read["best_val_loss"]) is float
    plain = settings_to_container(read["config"])
    assert plain == dict(causal=True, rates=[1e-4, 2e-4], inner=dict(a=1))
    assert load_bundle(release, "cpu").first.config.n_layer == 1


@pytest.mark.parametrize("value", (np.array([1.0]), np.str_("text"), np.datetime64("2026-01-01")))
def test_other_values_of_numpy_are_named(tmp_path, value):
    torch.save(dict(value=value), tmp_path / "a.pt")
    with raises_one_line(BundleError, "a.pt", "numpy" if isinstance(value, np.ndarray) else "NumPy's type"):
        safe_torch_load(tmp_path / "a.pt")


@pytest.mark.parametrize("legacy", (False, True))
def test_a_first_stage_alone(release, tmp_path, legacy):
    "It replaces the first stage of a model; all other parts are the model's."
    content = torch.load(release / "first_stage.pt", weights_only=True)
    changed = {name: t + 0.01 for name, t in content["model"].items()}
    path = tmp_path / "mine.pt"
    torch.save(content | dict(model=changed), path, _use_new_zipfile_serialization=not legacy)
    base, bundle = load_bundle(release, "cpu"), load_bundle(release, "cpu", first_stage_path=path)
    state = bundle.first.state_dict()
    assert all(torch.equal(state[name.removeprefix("_orig_mod.")], t) for name, t in changed.items())
    assert bundle.tokeniser.encode("the cat") == base.tokeniser.encode("the cat")
    second, other = (b.second.state_dict() for b in (base, bundle))
    assert all(torch.equal(second[k], other[k]) for k in second)
    assert bundle.name == "release with mine" and bundle.info()["parts"]["first"]["at"] == str(tmp_path)


def test_a_first_stage_that_does_not_fit(release, tmp_path):
    with raises_one_line(BundleError, "there is no file", "absent.pt"):
        load_bundle(release, "cpu", first_stage_path=tmp_path / "absent.pt")
    (tmp_path / "mine.safetensors").write_bytes(b"")
    with raises_one_line(BundleError, "without a configuration"):
        load_bundle(release, "cpu", first_stage_path=tmp_path / "mine.safetensors")
    with raises_one_line(BundleError, "second_stage.pt", "can't be the first stage"):
        load_bundle(release, "cpu", first_stage_path=release / "second_stage.pt").first
    with raises_one_line(BundleError, "don't fit the"):
        load_bundle("nano", "cpu", first_stage_path=release / "first_stage.pt").second
