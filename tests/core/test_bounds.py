"Files of tensors and JSON from strangers are bounded before they are read, in every module."
import ast
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from metavoice.core.bounds import MAX_JSON_BYTES, load_tensors, open_regular, parse_json, read_json
from metavoice.core.errors import BundleError

PACKAGE = Path(__file__).parents[2] / "metavoice"
UNBOUNDED = {  # call → the module that bounds it for all others
    "safe_open": "core/bounds.py", "load_file": None, "torch.load": None, "pickle.load": None, "pickle.loads": None,
}  # fmt: skip
OWN_FILES = ("measure/hostile_checkpoints.py", "measure/hostile_models.py")  # change files that they have just written


def calls(path):
    "Yield the names of all functions that a module calls, with their lines."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            yield from ((known, node.lineno) for known in UNBOUNDED if name == known or name.endswith(f".{known}"))


def test_no_module_reads_tensors_or_pickles_past_the_bounds():
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} calls {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name, line in calls(path)
        if path.relative_to(PACKAGE).as_posix() not in (UNBOUNDED[name], *OWN_FILES)
    ]
    assert not wrong, wrong


def test_no_other_module_imports_a_reader_of_tensors():
    allowed = {"save", "save_file", "SafetensorError"}
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).as_posix() in ("core/bounds.py", *OWN_FILES):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            names, of = [alias.name for alias in node.names], getattr(node, "module", None) or ""
            if isinstance(node, ast.Import) and any(name.startswith("safetensors") for name in names):
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
            if isinstance(node, ast.ImportFrom) and of.startswith("safetensors") and not {*names} <= allowed:
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert not wrong, wrong


def test_shapes_are_compared_before_a_tensor_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 4_000_000_000)  # a sparse file
    with pytest.raises(BundleError, match=r"a has the shape \(1000000000,\); expected \(256,\)"):
        load_tensors(path, "np", dict(a=(256,)))


def test_pipes_and_devices_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        for read in (open_regular, read_json, load_tensors):
            with pytest.raises(OSError, match="pipe or a device"):
                read(path)


def test_json_is_bounded(tmp_path):
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 10**6)
    with pytest.raises(ValueError):
        parse_json("1" * 10**6)
    (tmp_path / "a.json").write_bytes(b" " * (MAX_JSON_BYTES + 1))
    with pytest.raises(BundleError, match="too many"):
        read_json(tmp_path / "a.json")


def test_tensors_are_read_as_they_are(tmp_path):
    save_file(dict(a=np.arange(4.0)), tmp_path / "a.safetensors")
    assert load_tensors(tmp_path / "a.safetensors", "np")["a"].tolist() == [0, 1, 2, 3]
