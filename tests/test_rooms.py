"Modules import only what stands above them, importing does no work, and modules, classes and functions stay small."
import ast
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = "core audio text models bundle generate jobs train measure serve ui cli".split()
NOTEBOOKS = sorted(p for room in ROOMS for p in (ROOT / "nbs" / room).glob("*.ipynb"))
MODULES = sorted(p for p in (ROOT / "metavoice").rglob("*.py") if p.name not in ("__init__.py", "_modidx.py"))
SOURCES = [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))]


def module_name(path):
    "The dotted name of a module below metavoice: models.gpt."
    return ".".join(path.relative_to(ROOT / "metavoice").with_suffix("").parts)


def exported_module(notebook):
    "The module that a notebook names in its `default_exp`, or None."
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for line in "".join(cell["source"]).splitlines():
            if cell["cell_type"] == "code" and line.replace(" ", "").startswith("#|default_exp"):
                return line.split()[-1]


def place(notebook):
    "Where a notebook stands in the order of imports: the number of its room, then its own."
    return ROOMS.index(notebook.parent.name), int(re.match(r"\d+", notebook.name)[0])


PLACES = {exported_module(path): place(path) for path in NOTEBOOKS if exported_module(path)}


def imported_modules(tree, package, names):
    "Yield the modules of the package that a syntax tree imports, at the top or inside functions, with their lines."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ["metavoice", *package][: len(package) + 2 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found = [base, *(f"{base}.{alias.name}" for alias in node.names)]
            if base.startswith("metavoice") and any(alias.name == "*" for alias in node.names):
                yield "*", node.lineno
        else:
            continue
        for name in found:
            if name.removeprefix("metavoice.") in names and name.startswith("metavoice."):
                yield name.removeprefix("metavoice."), node.lineno


def test_import_scan_finds_every_form():
    code = (
        "from ..audio.sound import load\nfrom metavoice.core.errors import *\nimport torch\n"
        "def f():\n    import metavoice.models.codec\n    from metavoice.models import gpt\n    from . import mbd\n"
    )
    names = {"audio.sound", "core.errors", "models.codec", "models.gpt", "models.mbd"}
    found = set(imported_modules(ast.parse(code), ["models"], names))
    assert found == {
        ("audio.sound", 1), ("core.errors", 2), ("*", 2), ("models.codec", 5), ("models.gpt", 6), ("models.mbd", 7)
    }


def test_every_module_comes_from_one_notebook_of_its_room():
    exported = [exported_module(path) for path in NOTEBOOKS]
    exported = [name for name in exported if name]
    assert len(exported) == len(set(exported)), "two notebooks export one module"
    assert {module_name(p) for p in MODULES} == set(exported), "metavoice and nbs don't match; run nbdev_export"
    for path in NOTEBOOKS:
        name = exported_module(path)
        assert name is None or name.split(".")[0] == path.parent.name, f"{path} exports {name}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_follow_the_order(path):
    name, wrong = module_name(path), []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for other, line in imported_modules(tree, name.split(".")[:-1], PLACES):
        if other == "*":
            wrong.append(f"line {line}: a star import")
        elif PLACES[other] >= PLACES[name] and other != name:
            wrong.append(f"line {line}: {other}")
    assert not wrong, f"{name} imports what stands below it: {'; '.join(wrong)}"


def test_no_line_is_over_120_characters():
    long = [
        f"{path.relative_to(ROOT)}:{n}"
        for path in SOURCES
        for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 120
    ]
    assert not long, long


def class_targets(assignment):
    "The targets of an assignment that set an attribute of a class."
    for target in assignment.targets:
        for one in target.elts if isinstance(target, ast.Tuple) else [target]:
            if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id[:1].isupper():
                yield ast.unparse(one)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_sizes(path):
    text = path.read_text(encoding="utf-8")
    code = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(code) <= 400, f"{len(code)} lines of code"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            most = 150 if isinstance(node, ast.ClassDef) else 50
            length = node.end_lineno - node.lineno + 1
            assert length <= most, f"{node.name} has {length} lines, and may have {most}"
        if isinstance(node, ast.Assign):
            assert not list(class_targets(node)), f"line {node.lineno}: write it in the class, or with @patch"


def python(code, **environment):
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert run.returncode == 0, run.stderr


def test_import_is_light():
    python("import metavoice, sys; assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)")


def test_public_names_are_lazy():
    python("import sys; from metavoice import TTS, Audio, Voice; assert TTS.from_pretrained and Audio and Voice.load")


def test_help_needs_no_torch():
    python(
        "import sys; sys.argv = ['metavoice', '--help']; from metavoice.cli import main\n"
        "try: main()\nexcept SystemExit as e: assert not e.code, e.code\n"
        "assert 'torch' not in sys.modules, 'help needs no torch'"
    )


IMPORT_ALL = """
import importlib, random, sys, threading
import numpy as np, torch
def state():
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return {
        'python seed': random.getstate(), 'numpy seed': str(np.random.get_state()),
        'torch seed': torch.get_rng_state().tolist(), 'dtype': torch.get_default_dtype(),
        'device': torch.get_default_device(), 'grad': torch.is_grad_enabled(),
        'threads': (torch.get_num_threads(), torch.get_num_interop_threads()), 'running': threading.active_count(),
        'deterministic': torch.are_deterministic_algorithms_enabled(),
        'precision': torch.get_float32_matmul_precision(), 'tf32': (cuda.matmul.allow_tf32, cudnn.allow_tf32),
        'benchmark': cudnn.benchmark, 'cudnn': (cudnn.enabled, cudnn.deterministic),
        'cuda': torch.cuda.is_initialized(),
        'sdp': (cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.mem_efficient_sdp_enabled())}
before = state()
for name in sys.argv[1:]: importlib.import_module(f'metavoice.{name}')
after = state()
changed = [k for k in before if before[k]!=after[k]]
assert not changed, f'importing changed {changed}'
"""


def test_imports_do_no_work(tmp_path):
    folders = {name: tmp_path / name for name in ("home", "cwd", "tmp")}
    for folder in folders.values():
        folder.mkdir()
    own = {
        name: str(folders["home"] / name)
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "TORCH_HOME", "METAVOICE_CACHE")
    }
    own |= dict(HOME=str(folders["home"]), TMPDIR=str(folders["tmp"]))
    own |= dict(PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1")
    names = [module_name(path) for path in MODULES if path.stem != "__main__"]
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *names], cwd=folders["cwd"], capture_output=True, text=True,
        env={**os.environ, **own},
    )
    assert run.returncode == 0, run.stderr
    assert not run.stdout, f"importing printed {run.stdout!r}"
    made = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p not in folders.values()]
    assert not made, f"importing made {made}"


def seconds(code):
    start = time.perf_counter()
    python(code)
    return time.perf_counter() - start


def test_import_takes_less_time_than_importing_numpy():
    own = min(seconds("import metavoice") for _ in range(3))
    numpy = min(seconds("import numpy") for _ in range(3))
    assert own < numpy, f"`import metavoice` took {own:.2f} s, and numpy {numpy:.2f} s"
