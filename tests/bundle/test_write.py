"Writing bundles: round trips, interrupted writing, other folders, invalid parts, and random weights."
import os
import shutil

import pytest
import torch
from helpers import raises_one_line
from safetensors import safe_open
from safetensors.torch import load_file

import metavoice.bundle.write
from metavoice.audio.sound import load_audio
from metavoice.bundle.load import load_bundle
from metavoice.bundle.write import (
    atomic_folder,
    export_state_dict,
    make_random_parts,
    write_bundle,
    write_random_bundle,
)
from metavoice.core.errors import BundleError, OptionError, OutputError
from metavoice.core.layout import TokenLayout
from metavoice.models.gpt import GPTConfig
from metavoice.models.mbd import make_mbd
from metavoice.models.unet import UNetConfig
from metavoice.text.tokeniser import SPLIT_PATTERN, Tokeniser


def test_round_trip(tiny_parts, tiny_bundle, read_all):
    bundle = read_all(tiny_bundle)
    for part in ("first", "second", "codec", "speaker_encoder", "mbd"):
        a, b = tiny_parts[part].state_dict(), getattr(bundle, part).state_dict()
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), part
        assert not getattr(bundle, part).training
    assert bundle.tokeniser.encode("the cat") == tiny_parts["tokeniser"].encode("the cat")
    assert bundle.layout == TokenLayout(text_ranks=260) and bundle.minimum_reference == 3
    assert bundle.defaults["guidance"] == 2 and bundle.defaults["top_p"] == 0.95
    assert bundle.defaults["second"]["top_k"] == 200
    assert list(bundle.voices) == ["awb"] and load_audio(bundle.voices["awb"]).duration > 1


def test_files_follow_the_umask(tiny_bundle):
    mask = os.umask(0)
    os.umask(mask)
    for path in (tiny_bundle, *tiny_bundle.rglob("*")):
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        assert path.stat().st_mode & 0o777 == wanted, path


def test_weights_are_float16_on_disk(tiny_parts, tmp_path, read_all):
    write_bundle(tmp_path / "half", name="half", **tiny_parts)
    with safe_open(tmp_path / "half" / "first_stage.safetensors", "pt") as f:
        assert {f.get_tensor(n).dtype for n in f.keys()} == {torch.float16} and "lm_heads.0.weight" not in f.keys()
        assert f.metadata()["licence"] == "not stated"
    codec = load_file(tmp_path / "half" / "codec.safetensors")
    assert codec["mel_in.weight"].dtype == torch.float16
    assert torch.equal(codec["quantiser.codebooks"], tiny_parts["codec"].quantiser.codebooks)
    assert read_all(tmp_path / "half").first.lm_heads[0].weight.dtype == torch.float32


def test_without_diffusion_and_scorer(tiny_parts, tmp_path):
    parts = tiny_parts | dict(mbd=None, listener=None)
    path = write_bundle(tmp_path / "b", name="plain", **parts, defaults=dict(vocoder="mbd", takes=6))
    bundle = load_bundle(path, "cpu")
    assert bundle.defaults["vocoder"] == "codec" and bundle.defaults["takes"] == 1
    assert not {"mbd", "listener"} & set(bundle.parts)
    with raises_one_line(BundleError, "'plain' has no mbd", "vocoder 'codec'"):
        bundle.mbd
    with raises_one_line(BundleError, "'plain' has no listener", "takes 1"):
        bundle.listener


def test_saving_into_its_own_folder(bundle_copy, read_all):
    bundle = load_bundle(bundle_copy, "cpu")
    before = bundle.first.state_dict()
    bundle.save(bundle_copy, "float32", name="renamed")
    again = read_all(bundle_copy)
    assert again.name == "renamed" and list(again.voices) == ["awb"]
    assert all(torch.equal(v, before[k]) for k, v in again.first.state_dict().items())


def test_readme_is_kept(bundle_copy):
    (bundle_copy / "README.md").write_text("about")
    load_bundle(bundle_copy, "cpu").save(bundle_copy)
    assert (bundle_copy / "README.md").read_text() == "about"


def test_nothing_is_changed_if_the_disk_is_full(tiny_parts, bundle_copy, tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in bundle_copy.iterdir() if path.is_file()}

    def full(*a, **k):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        write_bundle(bundle_copy, name="x", **tiny_parts)
    with pytest.raises(OutputError, match="No space left"):
        write_bundle(tmp_path / "new", name="x", **tiny_parts)
    assert {path.name: path.read_bytes() for path in bundle_copy.iterdir() if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_interrupted_writing_keeps_the_old_bundle(bundle_copy, tmp_path, read_all):
    with pytest.raises(KeyboardInterrupt):
        with atomic_folder(bundle_copy) as new:
            (new / "bundle.json").write_text("{")
            raise KeyboardInterrupt
    assert read_all(bundle_copy).name == "tiny" and [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_other_folders_are_not_overwritten(tiny_parts, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    with raises_one_line(OutputError, "thesis.txt", "choose another folder"):
        write_bundle(tmp_path / "home", name="x", **tiny_parts)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        write_bundle(tmp_path / "file", name="x", **tiny_parts)
    with pytest.raises(OutputError, match="No such file"):
        write_bundle(tmp_path / "no" / "where", name="x", **tiny_parts)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years"


def test_a_link_to_a_folder_stays(bundle_copy, tmp_path, tiny_parts, read_all):
    (tmp_path / "link").symlink_to("copy")
    assert read_all(write_bundle(tmp_path / "link", name="new", **tiny_parts)).name == "new"
    assert (tmp_path / "link").is_symlink() and read_all(bundle_copy).name == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "link"]


def test_empty_and_partial_folders_are_accepted(tiny_parts, tiny_bundle, tmp_path, read_all):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    shutil.copy(tiny_bundle / "speaker_encoder.safetensors", tmp_path / "b")
    for name in "ab":
        assert read_all(write_bundle(tmp_path / name, name=name, **tiny_parts)).name == name


def test_invalid_parts(tiny_parts, tmp_path, sample_file):
    def write(**changed):
        write_bundle(tmp_path / "b", **dict(name="x", **tiny_parts) | changed)

    with pytest.raises(BundleError, match="can't be the second stage"):
        write(second=tiny_parts["first"])
    with pytest.raises(BundleError, match="don't fit the 256 ranks"):
        write(tokeniser=Tokeniser({bytes([b]): b for b in range(256)}, SPLIT_PATTERN))
    with pytest.raises(OptionError, match="can't be the codec"):
        write(codec=tiny_parts["mbd"])
    with pytest.raises(OptionError, match="int4"):
        write(dtype="int4")
    with pytest.raises(BundleError, match="absent.ogg is missing"):
        write(voices=dict(a=("absent.ogg", "")))
    with pytest.raises(BundleError, match="use letters"):
        write(voices={"../a": (sample_file, "")})
    with pytest.raises(BundleError, match="should be ogg"):
        write(voices=dict(a=(__file__, "")))
    loud = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(loud.weight, 1e6)
    with pytest.raises(BundleError, match="weight holds values that float16 can't"):
        export_state_dict(loud, torch.float16, "first")
    assert not list(tmp_path.iterdir())


def test_random_bundles(tmp_path):
    a, b, c = (
        load_bundle(write_random_bundle(tmp_path / n, "nano", seed=seed), "cpu")
        for n, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert a.manifest["random"] == 0 and a.name == "random-nano"
    assert all("random" in licence for licence in a.licences.values())
    nano = load_bundle(device="cpu")
    for part in ("first", "second"):
        first, same, other, trained = (getattr(bundle, part).state_dict() for bundle in (a, b, c, nano))
        assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in trained.items()}
        assert all(torch.equal(v, same[k]) and v.isfinite().all() for k, v in first.items())
        assert not torch.equal(first["transformer.wpe.weight"], other["transformer.wpe.weight"])
    assert a.defaults["piece_tokens"] == nano.defaults["piece_tokens"]
    assert a.codec.entry_phones.unique().tolist() == [*range(len(a.codec.config.phones))]
    with safe_open(tmp_path / "a" / "first_stage.safetensors", "pt") as f:
        assert f.metadata()["random"] == "0"
    assert load_file(tmp_path / "a" / "first_stage.safetensors")["transformer.wpe.weight"].dtype == torch.bfloat16
    with pytest.raises(OptionError, match="unknown size '7b'; use 1b or nano"):
        write_random_bundle(tmp_path / "d", "7b")
    with pytest.raises(OptionError, match="int4"):
        write_random_bundle(tmp_path / "d", "nano", "int4")


def test_random_parts_of_the_released_size_need_no_memory(monkeypatch, tiny_unet_config):
    def make_tiny_mbd(unet):
        assert unet == UNetConfig()
        return make_mbd(tiny_unet_config, n_bands=2).eval()

    monkeypatch.setattr(metavoice.bundle.write, "make_mbd", make_tiny_mbd)
    parts = make_random_parts("1b")
    first = parts["first"]
    assert len(parts["tokeniser"].mergeable_ranks) == TokenLayout().text_ranks
    assert first.config == GPTConfig(vocab_sizes=[TokenLayout().first_vocab])
    assert first.transformer.wpe.weight.is_meta and 1.2e9 < first.num_parameters < 1.3e9
    assert parts["codec"].config.hop * 75 == 24000 and 9e6 < parts["second"].num_parameters < 15e6
