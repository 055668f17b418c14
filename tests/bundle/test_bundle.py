"Bundles: the released files and our own layout, round trips, broken and wicked files, memory, and what the Hub is asked for."

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import metavoice.bundle.hub
import metavoice.bundle.load
import metavoice.bundle.write
import metavoice.core.devices
from metavoice.audio.sound import load_audio
from metavoice.bundle.hub import BundleLocation, find_bundle
from metavoice.bundle.load import check_stage, load_bundle
from metavoice.bundle.manifest import PART_FILES
from metavoice.bundle.released import (
    ENCODEC_REPO,
    MBD_REPO,
    PINNED_REVISIONS,
    RELEASED_REPO,
    convert_stage_config,
    make_hub_entry,
    make_released_manifest,
)
from metavoice.bundle.write import (
    atomic_folder,
    export_state_dict,
    make_random_parts,
    write_bundle,
    write_random_bundle,
)
from metavoice.core.errors import BundleError, OptionError, OutputError
from metavoice.core.layout import TokenLayout
from metavoice.models.gpt import GPT, GPTConfig
from metavoice.models.listener import CTCScorer, CTCScorerConfig
from metavoice.models.mbd import fit_band_processors, make_mbd
from metavoice.models.nano_codec import NanoCodec, NanoCodecConfig
from metavoice.models.speaker_encoder import SpeakerEncoder
from metavoice.models.unet import UNetConfig
from metavoice.text.tokeniser import SPLIT_PATTERN, Tokeniser

CPU = torch.device("cpu")
SAMPLES = Path(__file__).parents[2] / "nbs" / "samples"


def one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text and text.strip()
    for word in words:
        assert word in text, text


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def parts():
    "A tiny model of everything."
    torch.manual_seed(0)
    layout, shape = (
        TokenLayout(text_ranks=260),
        dict(n_layer=1, n_head=2, n_embd=16, block_size=32, swiglu_multiple_of=16),
    )
    tokeniser = Tokeniser.train(["the cat sat on the mat"], 260, SPLIT_PATTERN, name="tiny")
    codec = NanoCodec(NanoCodecConfig(width=16, hidden=16, encoder_blocks=2, decoder_blocks=2, latent_dim=8)).eval()
    torch.nn.init.normal_(codec.quantiser.codebooks)
    mbd = make_mbd(UNetConfig(latent_dim=8, hidden=8, depth=2, growth=2.0, kernel=24, stride=12), n_bands=2).eval()
    fit_band_processors(mbd, torch.randn(2, 4800))
    return dict(
        tokeniser=tokeniser,
        first=GPT(GPTConfig(**shape, vocab_sizes=[layout.first_vocab])).eval(),
        second=GPT(
            GPTConfig(**shape, vocab_sizes=[layout.second_vocab, 1025], target_vocab_sizes=[1025] * 6, causal=False)
        ).eval(),
        codec=codec,
        speaker_encoder=SpeakerEncoder().eval(),
        mbd=mbd,
        listener=CTCScorer(CTCScorerConfig(phones=3, alphabet=" ab", width=16, wide=16, hidden=16, blocks=1)).eval(),
    )


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    "The tiny model in our own layout; not to be changed."
    return write_bundle(
        tmp_path_factory.mktemp("bundle") / "tiny",
        name="tiny",
        **parts,
        dtype="float32",
        minimum_reference=3,
        voices=dict(awb=(SAMPLES / "awb_1.ogg", "CMU Flite, voice awb")),
        licences=dict(first="Apache-2.0"),
        defaults=dict(guidance=2.0),
    )


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture
def release(parts, tmp_path):
    "The two stages and the speaker encoder in the released layout."
    folder = tmp_path / "release"
    folder.mkdir()
    t = parts["tokeniser"]
    tokenizer = dict(
        name=t.name, pat_str=t.pat_str, mergeable_ranks=t.mergeable_ranks, special_tokens=t.special_tokens, offset=0
    )
    for part in ("first", "second"):
        config = asdict(parts[part].config)
        torch.save(
            dict(
                model={f"_orig_mod.{k}": v for k, v in parts[part].state_dict().items()},
                model_args=config,
                config=dict(causal=config["causal"]),
                meta=dict(speaker_cond=True, speaker_emb_size=256, tokenizer=tokenizer),
                optimizer=dict(step=1),
            ),
            folder / f"{part}_stage.pt",
        )
    torch.save(dict(model_state=parts["speaker_encoder"].state_dict()), folder / "speaker_encoder.pt")
    return folder


def read_all(path):
    bundle = load_bundle(path, "cpu")
    for part in bundle.parts:
        getattr(bundle, part)
    return bundle


# The golden files: released → loaded → saved → loaded


@pytest.fixture(scope="module")
def golden_pair(full_golden, tmp_path_factory):
    released = load_bundle(full_golden, "cpu")
    path = released.save(tmp_path_factory.mktemp("golden") / "ours", "float32")
    return released, load_bundle(path, "cpu")


@torch.inference_mode()
def test_golden_logits(golden_pair, expected):
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
    a, b = (bundle.mbd.generate(latent, 3000, seeded(), 3) for bundle in golden_pair)
    assert torch.equal(a, b)


def test_golden_manifest(golden_pair):
    released, ours = golden_pair
    assert (
        ours.manifest["parts"]["codec"]
        == make_hub_entry(ENCODEC_REPO, "encodec")
        == released.manifest["parts"]["codec"]
    )
    assert ours.minimum_reference == released.minimum_reference == 30
    assert "CC-BY-NC" in ours.licences["mbd"] and ours.licences["first"] == "Apache-2.0"
    assert (
        ours.manifest["parts"]["first"]["config"]["causal"] and not ours.manifest["parts"]["second"]["config"]["causal"]
    )
    assert not any(
        p.requires_grad
        for part in ("first", "second", "speaker_encoder", "mbd")
        for p in getattr(ours, part).parameters()
    )
    assert sorted(o.name for o in ours.location.folder.iterdir()) == sorted(
        {"bundle.json", *PART_FILES.values()} - {"codec.safetensors", "listener.safetensors"}
    )


def test_golden_in_half(golden, golden_pair, expected, tmp_path):
    half = load_bundle(golden_pair[0].save(tmp_path / "half"), "cpu")
    ids, speaker = torch.from_numpy(expected["fs_ids"]).long(), torch.from_numpy(expected["fs_spk"])
    with torch.inference_mode():
        (a,), (b,) = (bundle.first(ids[:, None], speaker) for bundle in (golden_pair[0], half))
    assert b.dtype == torch.float32 and (a - b).abs().max() < 5e-3 * a.abs().max()
    assert half.mbd.bands[2].processor.counts.dtype == torch.float32
    assert torch.equal(half.mbd.bands[2].processor.sum_x2, golden_pair[0].mbd.bands[2].processor.sum_x2)


# Our own layout


def test_round_trip(parts, whole):
    bundle = read_all(whole)
    for part in ("first", "second", "codec", "speaker_encoder", "mbd"):
        a, b = parts[part].state_dict(), getattr(bundle, part).state_dict()
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), part
        assert not getattr(bundle, part).training
    assert bundle.tokeniser.encode("the cat") == parts["tokeniser"].encode("the cat")
    assert bundle.layout == TokenLayout(text_ranks=260) and bundle.minimum_reference == 3
    assert (
        bundle.defaults["guidance"] == 2
        and bundle.defaults["top_p"] == 0.95
        and bundle.defaults["second"]["top_k"] == 200
    )
    assert list(bundle.voices) == ["awb"] and load_audio(bundle.voices["awb"]).duration > 1


def test_files_follow_the_umask(whole):
    mask = os.umask(0)
    os.umask(mask)
    for path in (whole, *whole.rglob("*")):
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        assert path.stat().st_mode & 0o777 == wanted, path


def test_parts_are_read_when_needed(whole):
    bundle = load_bundle(whole, "cpu")
    assert not {"tokeniser", "first", "second", "codec", "speaker_encoder", "mbd"} & vars(bundle).keys()
    assert bundle.first is bundle.first
    assert "second" not in vars(bundle)


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float16"))
def test_stages_run_as_asked_and_the_rest_in_float32(whole, dtype):
    bundle = load_bundle(whole, "cpu", dtype)
    assert (
        bundle.first.transformer.wpe.weight.dtype == bundle.second.transformer.wpe.weight.dtype == getattr(torch, dtype)
    )
    assert bundle.codec.mel_in.weight.dtype == bundle.speaker_encoder.linear.weight.dtype == torch.float32
    assert {p.dtype for p in bundle.mbd.parameters()} == {torch.float32}


def test_half_on_disk(parts, tmp_path):
    write_bundle(tmp_path / "half", name="half", **parts)
    with safe_open(tmp_path / "half" / "first_stage.safetensors", "pt") as f:
        assert {f.get_tensor(n).dtype for n in f.keys()} == {torch.float16} and "lm_heads.0.weight" not in f.keys()
        assert f.metadata()["licence"] == "not stated"
    codec = load_file(tmp_path / "half" / "codec.safetensors")
    assert codec["mel_in.weight"].dtype == torch.float16 and torch.equal(
        codec["quantiser.codebooks"], parts["codec"].quantiser.codebooks
    )
    assert read_all(tmp_path / "half").first.lm_heads[0].weight.dtype == torch.float32


def test_without_diffusion(parts, tmp_path):
    bundle = load_bundle(
        write_bundle(
            tmp_path / "b", name="plain", **parts | dict(mbd=None, listener=None), defaults=dict(vocoder="mbd", takes=6)
        ),
        "cpu",
    )
    assert (
        bundle.defaults["vocoder"] == "codec"
        and bundle.defaults["takes"] == 1
        and not {"mbd", "listener"} & set(bundle.parts)
    )
    with pytest.raises(BundleError) as e:
        bundle.mbd
    one_line(e, "'plain' has no mbd", "vocoder 'codec'")
    with pytest.raises(BundleError) as e:
        bundle.listener
    one_line(e, "'plain' has no listener", "takes 1")


def test_saving_onto_itself_and_again(copy):
    bundle = load_bundle(copy, "cpu")
    before = bundle.first.state_dict()
    bundle.save(copy, "float32", name="renamed")
    again = read_all(copy)
    assert again.name == "renamed" and list(again.voices) == ["awb"]
    assert all(torch.equal(v, before[k]) for k, v in again.first.state_dict().items())


def test_readme_and_licence_stay(copy):
    (copy / "README.md").write_text("about")
    load_bundle(copy, "cpu").save(copy)
    assert (copy / "README.md").read_text() == "about"


def test_info(whole, release, monkeypatch):
    monkeypatch.setattr(metavoice.bundle.hub, "download", lambda *a: pytest.fail("info must not fetch"))
    about = json.loads(json.dumps(load_bundle(whole, "cpu").info()))
    assert about["name"] == "tiny" and about["voices"] == {"awb": "CMU Flite, voice awb"}
    assert list(about["parts"]) == list(PART_FILES) and about["parts"]["first"]["licence"] == "Apache-2.0"
    assert all(o["bytes"] > 0 for o in about["parts"].values())
    ours, theirs = about["parts"], load_bundle(release, "cpu").info()["parts"]
    assert (
        ours["second"]["parameters"] == theirs["second"]["parameters"]
        and theirs["first"]["parameters"] == ours["first"]["parameters"]
    )
    assert theirs["mbd"]["licence"].startswith("CC-BY-NC 4.0") and theirs["mbd"]["at"].startswith(MBD_REPO)


def test_nano_is_the_default(whole, tmp_path, monkeypatch):
    import metavoice

    monkeypatch.setattr(metavoice, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(BundleError) as e:
        load_bundle()
    one_line(e, "nano", "reinstall")
    shutil.copytree(whole, tmp_path / "nano")
    assert load_bundle(device="cpu").location.folder == tmp_path / "nano"


# Writing


def test_no_half_bundle(parts, copy, tmp_path, monkeypatch):
    before = {o.name: o.read_bytes() for o in copy.iterdir() if o.is_file()}

    def full(*a, **k):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        write_bundle(copy, name="x", **parts)
    with pytest.raises(OutputError, match="No space left"):
        write_bundle(tmp_path / "new", name="x", **parts)
    assert {o.name: o.read_bytes() for o in copy.iterdir() if o.is_file()} == before
    assert [o.name for o in tmp_path.iterdir()] == ["copy"]


def test_interrupted(copy, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with atomic_folder(copy) as new:
            (new / "bundle.json").write_text("{")
            raise KeyboardInterrupt
    assert read_all(copy).name == "tiny" and [o.name for o in tmp_path.iterdir()] == ["copy"]


def test_foreign_folders_are_left_alone(parts, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    with pytest.raises(OutputError) as e:
        write_bundle(tmp_path / "home", name="x", **parts)
    one_line(e, "thesis.txt", "choose another folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        write_bundle(tmp_path / "file", name="x", **parts)
    with pytest.raises(OutputError, match="No such file"):
        write_bundle(tmp_path / "no" / "where", name="x", **parts)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years"


def test_an_empty_folder_and_one_with_a_single_part_are_fine(parts, whole, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    shutil.copy(whole / "speaker_encoder.safetensors", tmp_path / "b")
    for name in "ab":
        assert read_all(write_bundle(tmp_path / name, name=name, **parts)).name == name


def test_what_cannot_be_written(parts, tmp_path):
    def write(**changed):
        write_bundle(tmp_path / "b", **dict(name="x", **parts) | changed)

    with pytest.raises(BundleError, match="can't be the second stage"):
        write(second=parts["first"])
    with pytest.raises(BundleError, match="don't fit the 256 ranks"):
        write(tokeniser=Tokeniser({bytes([b]): b for b in range(256)}, SPLIT_PATTERN))
    with pytest.raises(OptionError, match="can't be the codec"):
        write(codec=parts["mbd"])
    with pytest.raises(OptionError, match="int4"):
        write(dtype="int4")
    with pytest.raises(BundleError, match="absent.ogg is missing"):
        write(voices=dict(a=("absent.ogg", "")))
    with pytest.raises(BundleError, match="use letters"):
        write(voices={"../a": (SAMPLES / "awb_1.ogg", "")})
    with pytest.raises(BundleError, match="should be ogg"):
        write(voices=dict(a=(__file__, "")))
    loud = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(loud.weight, 1e6)
    with pytest.raises(BundleError, match="weight holds values that float16 can't"):
        export_state_dict(loud, torch.float16, "first")
    assert not list(tmp_path.iterdir())


# Files that are missing, torn, wrong


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
def test_missing_file(copy, name):
    (copy / name).unlink()
    bundle = load_bundle(copy, "cpu")
    with pytest.raises(BundleError) as e:
        bundle.voices
        for part in bundle.parts:
            getattr(bundle, part)
    one_line(e, str(copy / name), "is missing; copy it there")


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
def test_torn_file(copy, name, keep):
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(BundleError) as e:
        read_all(copy)
    one_line(e, name)


@pytest.mark.parametrize("keep", (0, 4, 100, 0.5, 0.999))
@pytest.mark.parametrize("name", ("first_stage.pt", "second_stage.pt", "speaker_encoder.pt"))
def test_torn_release(release, name, keep):
    data = (release / name).read_bytes()
    (release / name).write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    bundle = load_bundle(release, "cpu")
    with pytest.raises(BundleError) as e:
        bundle.tokeniser, bundle.first, bundle.second, bundle.speaker_encoder
    one_line(e, name)


@pytest.mark.parametrize("name", ("first_stage.pt", "second_stage.pt", "speaker_encoder.pt"))
def test_missing_file_of_a_release(release, name):
    (release / name).unlink()
    bundle = load_bundle(release, "cpu")
    with pytest.raises(BundleError) as e:
        bundle.tokeniser, bundle.first, bundle.second, bundle.speaker_encoder
    one_line(e, name, "is missing; copy it there")


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
def test_wrong_shape_missing_and_unknown(copy, part, name):
    path = copy / PART_FILES[part]
    state = load_file(path)
    for changed in (
        state | {name: torch.zeros(3, 5)},
        {k: v for k, v in state.items() if k != name},
        state | {"surplus": torch.zeros(1)},
    ):
        save_file(changed, path)
        with pytest.raises(BundleError) as e:
            getattr(load_bundle(copy, "cpu"), part)
        one_line(e, PART_FILES[part], "surplus" if "surplus" in changed else name)


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
def test_wrong_manifest(copy, change, word):
    manifest = json.loads((copy / "bundle.json").read_text())
    change(manifest)
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError) as e:
        read_all(copy)
    one_line(e, word)


@pytest.mark.parametrize("text", ("", "{", "[]", "7", "null", '{"parts": {}}', "\x00", "{'format': 1}"))
def test_not_a_manifest(copy, text):
    (copy / "bundle.json").write_text(text)
    with pytest.raises(BundleError) as e:
        load_bundle(copy)
    one_line(e, "bundle.json")


def test_a_manifest_in_another_encoding(copy):
    (copy / "bundle.json").write_bytes(b"\xff\xfe{\x00")
    with pytest.raises(BundleError) as e:
        load_bundle(copy)
    one_line(e, "bundle.json")


def test_other_weights_under_a_released_name(release):
    shutil.copy(release / "first_stage.pt", release / "second_stage.pt")
    with pytest.raises(BundleError) as e:
        load_bundle(release, "cpu").second
    one_line(e, "second_stage.pt", "can't be the second stage")
    torch.save([1, 2], release / "first_stage.pt")
    with pytest.raises(BundleError) as e:
        load_bundle(release, "cpu").tokeniser
    one_line(e, "first_stage.pt")
    torch.save(dict(model_state=dict(a=3)), release / "speaker_encoder.pt")
    with pytest.raises(BundleError) as e:
        load_bundle(release, "cpu").speaker_encoder
    one_line(e, "speaker_encoder.pt", "isn't a tensor")


def test_released_settings():
    meta = dict(speaker_cond=True, speaker_emb_size=128)
    assert (
        convert_stage_config(dict(model_args=dict(causal=True), meta=meta, config=dict(causal=False))).causal is False
    )
    assert convert_stage_config(dict(model_args=dict(causal=False), meta=meta)).causal is False
    assert convert_stage_config(dict(model_args={}, meta=meta)).speaker_emb_size == 128
    assert (
        convert_stage_config(dict(model_args={}, meta=dict(speaker_cond=False, speaker_emb_size=256))).speaker_emb_size
        is None
    )
    with pytest.raises(BundleError, match="expected 1025"):
        check_stage(
            GPTConfig(vocab_sizes=[1538, 1025], target_vocab_sizes=[999] * 6, causal=False), "second", TokenLayout()
        )


# Nothing runs


class Wicked:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("where", ("meta", "config", "optimizer", "weight", "whole", "tokenizer"))
@pytest.mark.parametrize("name", ("first_stage.pt", "second_stage.pt", "speaker_encoder.pt", "mbd_comp_8.pt"))
def test_wicked_pickle_does_not_run(release, tmp_path, name, where):
    ran = tmp_path / "ran"
    content = torch.load(release / name, weights_only=True) if name != "mbd_comp_8.pt" else {}
    if where == "whole":
        content = Wicked(ran)
    elif where == "weight":
        content.setdefault("model", {})["transformer.wpe.weight"] = Wicked(ran)
    elif where == "tokenizer":
        content.setdefault("meta", {})["tokenizer"] = Wicked(ran)
    else:
        content[where] = Wicked(ran)
    torch.save(content, release / name)
    bundle = load_bundle(release, "cpu")
    part = {
        "first_stage.pt": "first",
        "second_stage.pt": "second",
        "speaker_encoder.pt": "speaker_encoder",
        "mbd_comp_8.pt": "mbd",
    }[name]
    for use in (lambda: getattr(bundle, part), bundle.info):
        with pytest.raises(BundleError) as e:
            use()
        one_line(e, name, "would run", "system")
    assert not ran.exists()
    os.system(f"touch {ran}")  # so that the test can fail
    assert ran.exists()


# Names, folders and the Hub


def test_names(tmp_path, release, whole):
    assert find_bundle(RELEASED_REPO) == (
        make_released_manifest(RELEASED_REPO),
        BundleLocation(repo=RELEASED_REPO, revision=PINNED_REVISIONS[RELEASED_REPO]),
    )
    assert find_bundle(RELEASED_REPO, "a" * 40)[1].revision == "a" * 40
    assert load_bundle(release, "cpu").name == "release"
    for source, revision, words in (
        ("somebody/else", None, ("revision", RELEASED_REPO)),
        ("/absent/folder", None, ("there is no model",)),
        (str(tmp_path), None, ("neither bundle.json nor first_stage.pt",)),
        (str(whole / "bundle.json"), None, ("is a file",)),
        (str(whole), "a" * 40, ("is a folder",)),
        ("", None, ("neither bundle.json",)),
        ("nano 2", None, ("'nano 2'",)),
    ):
        with pytest.raises(BundleError) as e:
            load_bundle(source, "cpu", revision=revision)
        one_line(e, *words)
    with pytest.raises(OptionError, match="abacus"):
        load_bundle(whole, "abacus")
    with pytest.raises(OptionError, match="int3"):
        load_bundle(whole, "cpu", "int3")


def test_offline(monkeypatch, tmp_path):
    "Without a network the release can be named, described, and asked for in vain."
    import huggingface_hub

    def offline(repo, name, revision):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(BundleLocation, "local_path", lambda self, name: None)
    bundle = load_bundle(RELEASED_REPO, "cpu")
    assert {o["bytes"] for o in bundle.info()["parts"].values()} == {None}
    for part in ("tokeniser", "first", "second", "codec", "speaker_encoder", "mbd"):
        with pytest.raises(BundleError) as e:
            getattr(bundle, part)
        one_line(e, "go online once", {"codec": ENCODEC_REPO, "mbd": MBD_REPO}.get(part, RELEASED_REPO))
    with pytest.raises(BundleError) as e:
        load_bundle("somebody/else", "cpu", revision="b" * 40)
    one_line(e, "bundle.json", "go online once")


def test_fetches_only_what_is_needed_at_the_pinned_commit(release, whole, monkeypatch):
    asked = []

    def fetch(repo, files, revision):
        asked.append((repo, *files, revision))
        return ({RELEASED_REPO: release, "somebody/else": whole}[repo] / files[0]).parent

    monkeypatch.setattr(metavoice.bundle.hub, "download", fetch)
    monkeypatch.setattr(BundleLocation, "local_path", lambda self, name: None)
    bundle = load_bundle(RELEASED_REPO, "cpu")
    assert asked == []
    bundle.speaker_encoder
    bundle.first
    assert set(asked) == {
        (RELEASED_REPO, name, PINNED_REVISIONS[RELEASED_REPO]) for name in ("speaker_encoder.pt", "first_stage.pt")
    }
    asked.clear()
    other = load_bundle("somebody/else", "cpu", revision="c" * 40)
    assert other.name == "somebody/else" and load_audio(other.voices["awb"]).duration > 1
    assert asked == [("somebody/else", "bundle.json", "c" * 40), ("somebody/else", "voices/awb.ogg", "c" * 40)]


def test_a_released_layout_under_another_name_on_the_hub(monkeypatch):
    from huggingface_hub.errors import EntryNotFoundError

    def fetch(repo, files, revision):
        try:
            raise EntryNotFoundError.__new__(EntryNotFoundError)
        except EntryNotFoundError as e:
            raise BundleError("can't fetch") from e

    monkeypatch.setattr(metavoice.bundle.hub, "download", fetch)
    monkeypatch.setattr(BundleLocation, "local_path", lambda self, name: None)
    assert find_bundle("somebody/finetune", "d" * 40)[0] == make_released_manifest("somebody/finetune")


def test_encodec_beside_the_release(release, tmp_path):
    assert load_bundle(release, "cpu").locate_part("codec")[1] == BundleLocation(
        repo=ENCODEC_REPO, revision=PINNED_REVISIONS[ENCODEC_REPO]
    )
    (release / "encodec_24khz").mkdir()
    assert load_bundle(release, "cpu").locate_part("codec")[1] == BundleLocation(release / "encodec_24khz")
    with pytest.raises(BundleError) as e:
        load_bundle(release, "cpu").codec
    one_line(e, "encodec_24khz/config.json is missing")


def test_place_stays_inside(tmp_path):
    for name in ("../x", "/etc/passwd", "a/../../x"):
        with pytest.raises(BundleError, match="inside of"):
            BundleLocation(tmp_path).find(name)


# Memory

MEASURE = """
import json, sys, torch
from pathlib import Path
from metavoice.bundle.manifest import read_weights
from metavoice.models.gpt import GPT, GPTConfig, load_gpt
def peak(): return int([l for l in open('/proc/self/status') if l.startswith('VmHWM')][0].split()[1])/1024
folder, config, out = Path(sys.argv[1]), GPTConfig(**json.loads(sys.argv[2])), {}
name, dtype = sys.argv[3], getattr(torch, sys.argv[4])
open('/proc/self/clear_refs', 'w').write('5')
before = peak()
model = load_gpt(read_weights(folder/name, dtype, torch.device('cpu')), config)
print(json.dumps([peak()-before, sum(p.nbytes for p in model.parameters())/2**20]))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    "200 MB of random weights in both formats."
    folder, shape = tmp_path_factory.mktemp("large"), dict(n_layer=4, n_head=8, n_embd=1024, block_size=64)
    model = GPT(GPTConfig(**shape)).requires_grad_(False)
    assert 190 < sum(p.nbytes for p in model.parameters()) / 1e6 < 230
    torch.save(dict(model=model.state_dict()), folder / "large.pt")
    save_file(export_state_dict(model, torch.float16, "large"), folder / "large.safetensors")
    return folder, shape


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory is measured by Linux's /proc"
)
@pytest.mark.parametrize(
    "name, dtype", (("large.pt", "float32"), ("large.pt", "float16"), ("large.safetensors", "float32"))
)
def test_weights_are_not_held_twice(large, name, dtype):
    folder, shape = large
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), json.dumps(shape), name, dtype],
        capture_output=True,
        text=True,
        check=True,
    )
    peak, weights = json.loads(out.stdout.splitlines()[-1])
    print(f"{name} as {dtype}: peak {peak:.0f} MB for {weights:.0f} MB of weights")
    assert weights <= peak <= 1.3 * weights


def test_weights_are_their_own(release):
    "A file that changes later doesn't change a loaded model."
    bundle = load_bundle(release, "cpu")
    before = {k: v.clone() for k, v in bundle.first.state_dict().items()}
    with open(release / "first_stage.pt", "r+b") as f:
        f.write(b"\x00" * (release / "first_stage.pt").stat().st_size)
    assert all(torch.equal(v, before[k]) for k, v in bundle.first.state_dict().items())


def test_import_and_naming_do_no_work(whole):
    code = "import sys; from metavoice.bundle.load import load_bundle; load_bundle(sys.argv[1], 'cpu'); print('transformers' in sys.modules, 'tiktoken' in sys.modules)"
    assert subprocess.run(
        [sys.executable, "-c", code, str(whole)], capture_output=True, text=True, check=True
    ).stdout.split() == ["False", "False"]


# Random weights, number formats


def test_random_models_say_what_they_are(tmp_path):
    a, b, c = (
        load_bundle(write_random_bundle(tmp_path / n, "nano", seed=seed), "cpu")
        for n, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert a.manifest["random"] == 0 and a.name == "random-nano" and all("random" in o for o in a.licences.values())
    nano = load_bundle(device="cpu")
    for part in ("first", "second"):
        shapes = [{k: v.shape for k, v in getattr(o, part).state_dict().items()} for o in (a, nano)]
        assert shapes[0] == shapes[1]
        weights = [getattr(o, part).state_dict() for o in (a, b, c)]
        assert all(torch.equal(v, weights[1][k]) and v.isfinite().all() for k, v in weights[0].items())
        assert not torch.equal(weights[0]["transformer.wpe.weight"], weights[2]["transformer.wpe.weight"])
    with safe_open(tmp_path / "a" / "first_stage.safetensors", "pt") as f:
        assert f.metadata()["random"] == "0"
    assert load_file(tmp_path / "a" / "first_stage.safetensors")["transformer.wpe.weight"].dtype == torch.bfloat16
    with pytest.raises(OptionError, match="unknown size '7b'; use 1b or nano"):
        write_random_bundle(tmp_path / "d", "7b")
    with pytest.raises(OptionError, match="int4"):
        write_random_bundle(tmp_path / "d", "nano", "int4")


def test_the_released_shapes_without_their_weight(monkeypatch):
    monkeypatch.setattr(metavoice.bundle.write, "make_mbd", lambda unet: fit_and_return(unet))

    def fit_and_return(unet):
        assert unet == UNetConfig()
        return make_mbd(UNetConfig(latent_dim=8, hidden=8, depth=2, growth=2.0, kernel=24, stride=12), n_bands=2).eval()

    parts = make_random_parts("1b")
    first = parts["first"]
    assert (
        first.config == GPTConfig(vocab_sizes=[TokenLayout().first_vocab])
        and first.transformer.wpe.weight.is_meta
        and 1.2e9 < first.num_parameters < 1.3e9
    )
    assert parts["codec"].config.hop * 75 == 24000 and 9e6 < parts["second"].num_parameters < 15e6


def test_large_models_take_bfloat16_where_the_processor_has_it(whole, monkeypatch):
    assert load_bundle(whole, "cpu").dtype == torch.float32
    monkeypatch.setattr(metavoice.bundle.load, "LARGE_FILE_BYTES", 1000)
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(metavoice.core.devices, "has_native_bfloat16", lambda device=None: native)
        assert load_bundle(whole, "cpu").dtype == dtype
    assert load_bundle(whole, "cpu", "float32").dtype == torch.float32


def test_compiling_is_passed_on(whole):
    for compile in (None, True, False):
        assert load_bundle(whole, "cpu", compile=compile).first.compiling is compile
