"Models from strangers: each hostile manifest and model ends in one line, within two seconds and 300 MB."
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from helpers import raises_one_line

from metavoice.bundle.load import load_bundle
from metavoice.bundle.released import safe_torch_load, settings_to_container
from metavoice.cli import main
from metavoice.core.errors import BundleError, printable, show
from metavoice.core.pickles import MAX_PICKLE_WORK, read_pickle
from metavoice.measure.hostile_models import (
    MAX_MEGABYTES,
    MAX_SECONDS,
    hostile_outcome,
    list_hostile_cases,
    measure_hostile_models,
    write_valid_models,
)
from metavoice.measure.processes import subprocess_env

QUICK = (  # models that are written quickly
    "bomb", "copies", "reserve", "list_bomb", "hash_bomb", "own_list", "deep_list", "circle", "legacy_storage",
    "legacy_flood", "expanded", "one_storage", "stage_layers", "stage_heads", "stage_special", "integers",
    "complex_numbers", "other_phones", "deep_json", "bad_adapter 4",
)  # fmt: skip


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="each case runs in a fork of a warm process")


@needs_fork
@pytest.mark.slow
def test_hostile_manifests_and_models_are_bounded_in_time_and_memory():
    assert (MAX_SECONDS, MAX_MEGABYTES) == (2, 300)
    valid, *cases = measure_hostile_models()
    kinds = [case.name.partition(":")[0] for case in cases]
    assert kinds.count("manifest") >= 50 and kinds.count("release") >= 10 and kinds.count("bundle") >= 10
    assert valid.how == "loaded", valid
    wrong = [case for case in cases if not case.is_bounded]
    assert not wrong, "\n".join(map(str, wrong))


@needs_fork
def test_the_measurement_sees_what_a_case_takes():
    "Memory, time, a hang and an unexpected error are reported as such."
    code = """
import time
from metavoice.measure import hostile_models as h
def run(folder, name):
    h.reset_peak_memory() if h.has_proc() else None
    before = h.memory_at_peak()
    block = bytearray(b"a") * (400 << 20) if name == "greedy" else None
    if name == "hang":
        time.sleep(100)
    return h.HostileOutcome(name, "refused", "a message of one line", 0.1, h.memory_at_peak() - before)
def use(folder):
    raise ZeroDivisionError("no hop")
h.HANG_SECONDS = 5
found = {name: h.outcome_in_fork(None, name, run) for name in ("greedy", "hang", "modest")}
assert found["greedy"].megabytes > 400 and not found["greedy"].is_bounded, found
assert found["hang"].how == "killed by signal 14" and not found["hang"].is_bounded, found
assert found["modest"].megabytes < 20 and found["modest"].is_bounded, found
h.use_model = use
assert h.hostile_outcome(None).how == "ZeroDivisionError"
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=subprocess_env())
    assert not run.returncode, run.stderr


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    write_valid_models(folder)
    return folder


CASES = [
    case for case in list_hostile_cases() if case.name.startswith("manifest") or case.name.split(": ")[1] in QUICK
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_hostile_case(bases, tmp_path, case):
    folder = bases / tmp_path.name
    case.write(folder)
    found = hostile_outcome(folder)
    assert found.how == "refused" and 10 < len(found.message) < 700 and found.message.isprintable(), found
    assert found.seconds < 20  # hangs alone; the bound is in the slow test


def test_a_pickle_is_read_as_data(tmp_path):
    "What `torch.save` writes comes back equal from both formats, with shared tensors, views and plain values."
    table = torch.randn(4, 6)
    content = dict(
        model={"table": table, "head": table, "view": table[1:3, ::2], "turned": table.T, "empty": torch.zeros(0, 3)},
        half=torch.randn(3).bfloat16(), flags=torch.tensor([True, False]), scalar=torch.tensor(3), words={b"\xff": 1},
        best=np.float64(0.5), layers=[1, (2, 3), None, True, 10**20, -5, 1e-4], kinds={1, 2},
        parameter=torch.nn.Parameter(table), eight=torch.arange(3).to(torch.uint16),
    )  # fmt: skip
    for zipped in (True, False):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        read = safe_torch_load(tmp_path / "a.pt")
        assert read.keys() == content.keys()
        for name, value in content["model"].items():
            assert torch.equal(read["model"][name], value) and read["model"][name].dtype == value.dtype
        assert read["model"]["head"].data_ptr() == read["model"]["table"].data_ptr()
        for name in ("half", "flags", "scalar", "parameter", "eight"):
            assert torch.equal(read[name], content[name]), name
        for name in ("words", "best", "layers", "kinds"):
            assert read[name] == content[name]


def test_the_budget_of_a_pickle():
    flood = b"\x80\x02(" + b"]" * (MAX_PICKLE_WORK + 1) + b"t."
    with raises_one_line(BundleError, f"{MAX_PICKLE_WORK:,} steps"):
        read_pickle(io.BytesIO(flood))
    assert len(read_pickle(io.BytesIO(pickle.dumps([[]] * 100_000, 2)))) == 100_000


BROKEN_PICKLES = (
    b"", b"e.", b".", b"h\1.", b"X\xff\xff\xff\xffa.", b"K\1R.", b"K\1K\2b.", b"K\1K\2a.", b"}]K\1s.", b"cos\n",
    b"c\xff\n\n.", b"\xff.", b"t.", b"Q.", b"]K\1K\2s.",
)  # fmt: skip


@pytest.mark.parametrize("ops", BROKEN_PICKLES)
def test_broken_pickles(ops):
    with pytest.raises((ValueError, LookupError, TypeError)):
        read_pickle(io.BytesIO(b"\x80\2" + ops))


def test_an_archive_with_more_than_a_checkpoint(tmp_path):
    "Entries that aren't read may be there; a storage that is shorter than its pickle says is an error."
    path = tmp_path / "a.pt"
    torch.save(dict(a=torch.arange(4.0)), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/extra/notes", "x" * 1000)
    assert torch.equal(safe_torch_load(path)["a"], torch.arange(4.0))
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data[:8] if name.endswith("data/0") else data)
    with raises_one_line(BundleError, str(path), "has 8 bytes, not 16"):
        safe_torch_load(path)


def test_settings_are_counted_where_they_are_shared():
    tree = [1]
    for _ in range(8):
        tree = [tree, tree]
    assert str(settings_to_container(tree)).count("1") == 256
    for _ in range(40):
        tree = [tree, tree]
    with raises_one_line(BundleError, "levels"):
        settings_to_container(tree)


ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\u2028\x00"


def test_control_characters_do_not_reach_the_terminal(bundle_copy, capsys):
    "The name of a model, a licence, a voice and its origin are shown with escapes, as text and as JSON."
    path = bundle_copy / "bundle.json"
    manifest = json.loads(path.read_text())
    manifest["name"] = f"tiny{ESCAPES}"
    manifest["licences"]["first"] = f"free{ESCAPES}\nas beer"
    voice = manifest["voices"].pop("awb")
    manifest["voices"][f"awb{ESCAPES}"] = voice | dict(source=f"someone{ESCAPES}")
    path.write_text(json.dumps(manifest))
    for more in ([], ["--json"]):
        assert main(["info", "--model", str(bundle_copy), *more]) == 0
        shown = capsys.readouterr().out
        assert all(line.isprintable() for line in shown.split("\n")), shown
        assert shown.count("\\u001b[2J") == 4 and "tiny" in shown and "as beer" in shown
    assert json.loads(shown)["name"] == manifest["name"]


@pytest.mark.parametrize("change", (
    lambda m: m["parts"].update({f"part{ESCAPES}": dict(kind="gpt")}),
    lambda m: m["parts"]["first"].update(kind=f"gpt{ESCAPES}"),
    lambda m: m["parts"]["first"]["config"].update({f"n{ESCAPES}": 1}),
    lambda m: m["parts"]["first"].update(file=f"first{ESCAPES}.pt"),
    lambda m: m["voices"].update({f"v{ESCAPES}": dict(accent="x", file="y")}),
    lambda m: m.update(format=f"1{ESCAPES}"),
))  # fmt: skip
def test_errors_have_no_control_characters(bundle_copy, capsys, change):
    path = bundle_copy / "bundle.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError) as error:
        load_bundle(bundle_copy, "cpu").first
    assert str(error.value).isprintable(), repr(str(error.value))
    main(["info", "--model", str(bundle_copy)])
    said = capsys.readouterr()
    assert all(line.isprintable() for line in (said.out + said.err).split("\n"))


def test_names_of_weights_are_shown_with_escapes(bundle_copy):
    from safetensors.torch import load_file, save_file

    path = bundle_copy / "codec.safetensors"
    save_file(load_file(path) | {f"w{ESCAPES}" + "n" * 10_000: torch.zeros(1)}, path)
    with pytest.raises(BundleError) as error:
        load_bundle(bundle_copy, "cpu").codec
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_printable_and_show():
    assert printable("plain é 😀 \t") == "plain é 😀 \t"
    assert printable("\ud800") == "\\ud800"
    shared = []
    for _ in range(100):
        shared = [shared, shared]
    assert len(show(shared)) < 100 and len(show("x" * 10**7)) < 100 and show(torch.zeros(3)) == "a Tensor"


@pytest.mark.parametrize("name", ("first_stage.pt", "second_stage.pt", "mbd_comp_8.pt"))
def test_golden_checkpoints_are_read_as_torch_reads_them(golden, name):
    "The tensors are those of `torch.load` with stand-ins for the settings."
    found = safe_torch_load(golden / name)
    if name.startswith("mbd"):
        for i in range(found["n_bands"]):
            assert settings_to_container(found[i]["cfg"])["schedule"]["num_steps"] > 0
            assert all(isinstance(t, torch.Tensor) for t in found[i]["model_state"].values())
        return
    expected = torch.load(golden / name, weights_only=True)
    assert found.keys() == expected.keys() and found["model"].keys() == expected["model"].keys()
    assert all(torch.equal(found["model"][k], t) for k, t in expected["model"].items())
    assert found["meta"]["tokenizer"] == expected["meta"]["tokenizer"]
