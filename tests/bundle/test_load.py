"Loading bundles: golden outputs before and after saving, parts, dtypes, and files that are missing or broken."
import json
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import raises_one_line
from safetensors.torch import load_file, save_file

import metavoice
import metavoice.bundle.hub
import metavoice.bundle.load
import metavoice.core.devices
from metavoice.audio.sound import load_audio
from metavoice.bundle.load import check_stage, load_bundle
from metavoice.bundle.manifest import PART_FILES
from metavoice.bundle.released import ENCODEC_REPO, MBD_REPO, make_hub_entry
from metavoice.core.errors import BundleError, OptionError
from metavoice.core.layout import TokenLayout
from metavoice.models import onnx_runtime
from metavoice.models.gpt import GPTConfig


@pytest.fixture(scope="module")
def golden_pair(full_golden, tmp_path_factory):
    "The released golden files, and the same model saved in our own format."
    released = load_bundle(full_golden, "cpu")
    path = released.save(tmp_path_factory.mktemp("golden") / "ours", "float32")
    return released, load_bundle(path, "cpu")


@torch.inference_mode()
def test_golden_logits_before_and_after_saving(golden_pair, expected):
    ids, speaker = torch.from_numpy(expected["fs_ids"]).long(), torch.from_numpy(expected["fs_spk"])
    rows = torch.from_numpy(expected["ss_in"]).long()
    (a,), (b,) = (bundle.first(ids[:, None], speaker) for bundle in golden_pair)
    assert torch.equal(a, b)
    wanted = torch.from_numpy(expected["fs_cond"])
    assert (b[:, expected["fs_prefix"] - 1] - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    a, b = (torch.stack(bundle.second(rows, speaker), 1) for bundle in golden_pair)
    assert torch.equal(a, b)
    wanted = torch.from_numpy(expected["ss_logits"]).float()
    assert (b[:, :, ::3] - wanted).abs().max() <= 2e-3 * wanted.abs().max()


def test_golden_tokens(golden_pair, expected_json):
    for case in expected_json["tokenise"]:
        a, b = (bundle.tokeniser.encode(case["text"]) for bundle in golden_pair)
        assert a == b
    assert golden_pair[0].layout == golden_pair[1].layout == TokenLayout()
    assert vars(golden_pair[0].tokeniser)["mergeable_ranks"] == vars(golden_pair[1].tokeniser)["mergeable_ranks"]


def test_golden_embedding(golden_pair, golden, expected):
    a, b = (bundle.speaker_encoder.embed_audio(load_audio(golden / "voice0.wav")) for bundle in golden_pair)
    assert torch.equal(a, b)
    assert torch.cosine_similarity(b, torch.from_numpy(expected["spk_emb0"]), dim=0) >= 0.9999


def test_golden_diffusion(golden_pair, mbd_expected):
    latent = torch.from_numpy(mbd_expected["cond"])[:1]
    a, b = (bundle.mbd.generate(latent, 3000, torch.Generator().manual_seed(0), 3) for bundle in golden_pair)
    assert torch.equal(a, b)


def test_golden_manifest(golden_pair):
    released, ours = golden_pair
    codecs = [bundle.manifest["parts"]["codec"] for bundle in golden_pair]
    assert codecs == [make_hub_entry(ENCODEC_REPO, "encodec")] * 2
    assert ours.minimum_reference == released.minimum_reference == 30
    assert "CC-BY-NC" in ours.licences["mbd"] and ours.licences["first"] == "Apache-2.0"
    parts = ours.manifest["parts"]
    assert parts["first"]["config"]["causal"] and not parts["second"]["config"]["causal"]
    for part in ("first", "second", "speaker_encoder", "mbd"):
        assert not any(p.requires_grad for p in getattr(ours, part).parameters())
    files = {"bundle.json", "voices", *PART_FILES.values()} - {"codec.safetensors", "listener.safetensors"}
    assert {path.name for path in ours.location.folder.iterdir()} == files


def test_golden_model_in_half_precision(golden, golden_pair, expected, tmp_path):
    half = load_bundle(golden_pair[0].save(tmp_path / "half"), "cpu")
    ids, speaker = torch.from_numpy(expected["fs_ids"]).long(), torch.from_numpy(expected["fs_spk"])
    with torch.inference_mode():
        (a,), (b,) = (bundle.first(ids[:, None], speaker) for bundle in (golden_pair[0], half))
    assert b.dtype == torch.float32 and (a - b).abs().max() < 5e-3 * a.abs().max()
    assert half.mbd.bands[2].processor.counts.dtype == torch.float32
    assert torch.equal(half.mbd.bands[2].processor.sum_x2, golden_pair[0].mbd.bands[2].processor.sum_x2)


def test_parts_are_loaded_when_needed(tiny_bundle):
    bundle = load_bundle(tiny_bundle, "cpu")
    assert not {"tokeniser", "first", "second", "codec", "speaker_encoder", "mbd"} & vars(bundle).keys()
    assert bundle.first is bundle.first
    assert "second" not in vars(bundle)


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float16"))
def test_stages_have_the_requested_dtype_and_the_rest_is_float32(tiny_bundle, dtype):
    bundle = load_bundle(tiny_bundle, "cpu", dtype)
    for stage in (bundle.first, bundle.second):
        assert stage.transformer.wpe.weight.dtype == getattr(torch, dtype)
    assert bundle.codec.mel_in.weight.dtype == bundle.speaker_encoder.linear.weight.dtype == torch.float32
    assert {p.dtype for p in bundle.mbd.parameters()} == {torch.float32}


def test_info(tiny_bundle, release, monkeypatch):
    monkeypatch.setattr(metavoice.bundle.hub, "download", lambda *a: pytest.fail("info must not fetch"))
    about = json.loads(json.dumps(load_bundle(tiny_bundle, "cpu").info()))
    assert about["name"] == "tiny" and about["voices"] == {"awb": "CMU Flite, voice awb"}
    assert list(about["parts"]) == list(PART_FILES) and about["parts"]["first"]["licence"] == "Apache-2.0"
    assert all(part["bytes"] > 0 for part in about["parts"].values())
    ours, theirs = about["parts"], load_bundle(release, "cpu").info()["parts"]
    for part in ("first", "second"):
        assert ours[part]["parameters"] == theirs[part]["parameters"]
    assert theirs["mbd"]["licence"].startswith("CC-BY-NC 4.0") and theirs["mbd"]["at"].startswith(MBD_REPO)


def test_nano_is_the_default(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(metavoice, "__file__", str(tmp_path / "__init__.py"))
    with raises_one_line(BundleError, "nano", "reinstall"):
        load_bundle()
    shutil.copytree(tiny_bundle, tmp_path / "nano")
    assert load_bundle(device="cpu").location.folder == tmp_path / "nano"


@pytest.mark.parametrize(
    "name",
    (
        "tokeniser.json",
        "first_stage.safetensors",
        "second_stage.safetensors",
        "codec.safetensors",
        "speaker_encoder.safetensors",
        "mbd.safetensors",
        "voices/awb.ogg",
    ),
)
def test_missing_file(bundle_copy, name):
    (bundle_copy / name).unlink()
    bundle = load_bundle(bundle_copy, "cpu")
    with raises_one_line(BundleError, str(bundle_copy / name), "is missing; copy it there"):
        bundle.voices
        for part in bundle.parts:
            getattr(bundle, part)


@pytest.mark.parametrize("keep", (0, 4, 100, 0.5, 0.999))
@pytest.mark.parametrize(
    "name",
    (
        "first_stage.safetensors",
        "codec.safetensors",
        "speaker_encoder.safetensors",
        "mbd.safetensors",
        "tokeniser.json",
        "bundle.json",
    ),
)
def test_truncated_file(bundle_copy, name, keep, read_all):
    data = (bundle_copy / name).read_bytes()
    (bundle_copy / name).write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with raises_one_line(BundleError, name):
        read_all(bundle_copy)


@pytest.mark.parametrize("keep", (0, 4, 100, 0.5, 0.999))
@pytest.mark.parametrize("name", ("first_stage.pt", "second_stage.pt", "speaker_encoder.pt"))
def test_truncated_released_file(release, name, keep):
    data = (release / name).read_bytes()
    (release / name).write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    bundle = load_bundle(release, "cpu")
    with raises_one_line(BundleError, name):
        bundle.tokeniser, bundle.first, bundle.second, bundle.speaker_encoder


@pytest.mark.parametrize("name", ("first_stage.pt", "second_stage.pt", "speaker_encoder.pt"))
def test_missing_released_file(release, name):
    (release / name).unlink()
    bundle = load_bundle(release, "cpu")
    with raises_one_line(BundleError, name, "is missing; copy it there"):
        bundle.tokeniser, bundle.first, bundle.second, bundle.speaker_encoder


@pytest.mark.parametrize(
    "part, name",
    (
        ("first", "transformer.wpe.weight"),
        ("second", "lm_heads.3.weight"),
        ("codec", "mel_in.weight"),
        ("speaker_encoder", "linear.weight"),
        ("mbd", "bands.1.unet.conv_codec.weight"),
    ),
)
def test_misshapen_missing_and_unknown_weights(bundle_copy, part, name):
    path = bundle_copy / PART_FILES[part]
    state = load_file(path)
    for changed in (
        state | {name: torch.zeros(3, 5)},
        {k: v for k, v in state.items() if k != name},
        state | {"surplus": torch.zeros(1)},
    ):
        save_file(changed, path)
        with raises_one_line(BundleError, PART_FILES[part], "surplus" if "surplus" in changed else name):
            getattr(load_bundle(bundle_copy, "cpu"), part)


def test_released_files_with_other_contents(release):
    shutil.copy(release / "first_stage.pt", release / "second_stage.pt")
    with raises_one_line(BundleError, "second_stage.pt", "can't be the second stage"):
        load_bundle(release, "cpu").second
    torch.save([1, 2], release / "first_stage.pt")
    with raises_one_line(BundleError, "first_stage.pt"):
        load_bundle(release, "cpu").tokeniser
    torch.save(dict(model_state=dict(a=3)), release / "speaker_encoder.pt")
    with raises_one_line(BundleError, "speaker_encoder.pt", "isn't a tensor"):
        load_bundle(release, "cpu").speaker_encoder


def test_a_changed_file_does_not_change_a_loaded_model(release):
    bundle = load_bundle(release, "cpu")
    before = {k: v.clone() for k, v in bundle.first.state_dict().items()}
    with open(release / "first_stage.pt", "r+b") as f:
        f.write(b"\x00" * (release / "first_stage.pt").stat().st_size)
    assert all(torch.equal(v, before[k]) for k, v in bundle.first.state_dict().items())


def test_naming_a_bundle_imports_no_libraries(tiny_bundle):
    code = """
import sys
from metavoice.bundle.load import load_bundle

load_bundle(sys.argv[1], "cpu")
print("transformers" in sys.modules, "tiktoken" in sys.modules)
"""
    command = [sys.executable, "-c", code, str(tiny_bundle)]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_large_models_are_bfloat16_on_a_cpu_that_supports_it(tiny_bundle, monkeypatch):
    assert load_bundle(tiny_bundle, "cpu").dtype == torch.float32
    monkeypatch.setattr(metavoice.bundle.load, "LARGE_FILE_BYTES", 1000)
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(metavoice.core.devices, "has_native_bfloat16", lambda device=None: native)
        assert load_bundle(tiny_bundle, "cpu").dtype == dtype
    assert load_bundle(tiny_bundle, "cpu", "float32").dtype == torch.float32


def test_compile_is_passed_to_the_stage(tiny_bundle):
    for compile in (None, True, False):
        assert load_bundle(tiny_bundle, "cpu", compile=compile).first.compiling is compile


def test_engines(tiny_bundle, monkeypatch):
    bundle = load_bundle(tiny_bundle, "cpu")
    assert (bundle.engine, bundle.step_engine, bundle.packed, bundle.first.engine) == ("onnx", "onnx", False, "onnx")
    bundle = load_bundle(tiny_bundle, "cpu", engine="torch")
    assert (bundle.engine, bundle.step_engine, bundle.first.engine) == ("torch", "torch", "torch")
    for options in (dict(dtype="bfloat16"), dict(compile=True)):
        bundle = load_bundle(tiny_bundle, "cpu", **options)
        assert (bundle.engine, bundle.step_engine) == ("onnx", "torch")
    for engine in ("cuda", ""):
        with pytest.raises(OptionError, match="use torch or onnx"):
            load_bundle(tiny_bundle, "cpu", engine=engine)
    monkeypatch.setattr(onnx_runtime, "import_onnxruntime", lambda: None)
    assert load_bundle(tiny_bundle, "cpu").first.engine == "torch"
    with pytest.raises(OptionError, match="pip install onnxruntime"):
        load_bundle(tiny_bundle, "cpu", engine="onnx")


def test_a_broken_configuration_of_the_first_stage(bundle_copy):
    folder = bundle_copy
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["parts"]["first"]["config"]["n_heads"] = 3
    (folder / "bundle.json").write_text(json.dumps(manifest))
    bundle = load_bundle(folder, "cpu")
    with pytest.raises(BundleError, match="n_heads"):
        bundle.first


def test_a_stage_must_fit_the_layout():
    second = GPTConfig(vocab_sizes=[1538, 1025], target_vocab_sizes=[999] * 6, causal=False)
    with pytest.raises(BundleError, match="expected 1025"):
        check_stage(second, "second", TokenLayout())
