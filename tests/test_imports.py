"Modules depend on lower-numbered ones only, and importing them does no work."
import ast, json, os, re, subprocess, sys, time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT/"nbs").glob("[0-9]*.ipynb")) + sorted((ROOT/"nbs"/"benchmarks").glob("*.ipynb"))
GENERATED = {"__init__", "_modidx"}


def exported_module(notebook):
    "The module that a notebook names in its `default_exp`, or None."
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for line in "".join(cell["source"]).splitlines():
            if cell["cell_type"]=="code" and line.replace(" ", "").startswith("#|default_exp"): return line.split()[-1]

def imported_modules(path, names):
    "Modules of the package that a file imports, at the top or inside functions, with the lines where it does."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): found = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["metavoice"*(node.level==1), node.module]))
            found = [base] + [f"{base}.{a.name}" for a in node.names]
            if any(a.name=="*" for a in node.names) and base.startswith("metavoice"): yield "*", node.lineno
        else: continue
        for name in found:
            parts = name.split(".")
            if parts[0]=="metavoice" and len(parts)>1 and parts[1] in names: yield parts[1], node.lineno


def number(notebook):
    "Its place in the order: 12 for 12_tts, a little more for 12b_corpora; benchmarks come after all that they measure, right before the commands."
    if notebook.parent.name == "benchmarks": return 18.9
    digits, letter = re.match(r"(\d+)([a-z]?)_", notebook.name).groups()
    return int(digits) + (ord(letter)-96)/100 if letter else int(digits)

NUMBERS = {exported_module(nb): number(nb) for nb in NOTEBOOKS}
MODULES = sorted(p for p in (ROOT/"metavoice").glob("*.py") if p.stem not in GENERATED)


def test_the_check_sees_what_it_should(tmp_path):
    code = ("from .audio import load\nfrom metavoice.core import *\nimport torch\n"
            "def f():\n    import metavoice.codec\n    from metavoice import gpt, __version__\n    from . import tts\n")
    (tmp_path/"m.py").write_text(code)
    found = set(imported_modules(tmp_path/"m.py", {"audio","core","codec","gpt","tts"}))
    assert found == {("audio",1), ("core",2), ("*",2), ("codec",5), ("gpt",6), ("tts",7)}

def test_every_module_comes_from_one_notebook():
    exported = [m for m in map(exported_module, NOTEBOOKS) if m]
    assert len(exported) == len(set(exported)), "two notebooks export one module"
    assert {p.stem for p in MODULES} == set(exported), "metavoice/*.py and the notebooks don't match; run nbdev_export"

@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_imports_follow_the_notebooks(path):
    number, wrong = NUMBERS.get(path.stem), []
    for name,line in imported_modules(path, NUMBERS):
        if name=="*": wrong.append(f"line {line}: a star import")
        elif NUMBERS[name] >= number and name!=path.stem: wrong.append(f"line {line}: {name} ({NUMBERS[name]:02})")
    assert not wrong, f"{path.name} ({number:02}) may import only modules with a lower number, but imports {'; '.join(wrong)}"


def python(code):
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert run.returncode == 0, run.stderr

def best_of_three(run):
    def once():
        start = time.perf_counter(); run()
        return time.perf_counter()-start
    return min(once() for _ in range(3))

def test_import_is_light():
    took = best_of_three(lambda: python("import metavoice, sys; assert not {'torch','numpy','transformers'} & set(sys.modules)"))
    assert took < .5, f"`import metavoice` took {took:.2f} s"

def test_help_is_quick():
    took = best_of_three(lambda: python("import sys; sys.argv = ['metavoice','--help']; from metavoice.cli import main\n"
        "try: main()\nexcept SystemExit as e: assert not e.code, e.code\n"
        "assert 'torch' not in sys.modules, 'help needs no torch'"))
    assert took < 1, f"`metavoice --help` took {took:.2f} s"

IMPORT_ALL = """
import importlib, random, sys, threading
import numpy as np, torch
def state(): return {
    'python seed': random.getstate(), 'numpy seed': str(np.random.get_state()), 'torch seed': torch.get_rng_state().tolist(),
    'dtype': torch.get_default_dtype(), 'device': torch.get_default_device(), 'grad': torch.is_grad_enabled(),
    'threads': (torch.get_num_threads(), torch.get_num_interop_threads()), 'running': threading.active_count(),
    'deterministic': torch.are_deterministic_algorithms_enabled(), 'precision': torch.get_float32_matmul_precision(),
    'tf32': (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32), 'benchmark': torch.backends.cudnn.benchmark,
    'cudnn': (torch.backends.cudnn.enabled, torch.backends.cudnn.deterministic), 'cuda': torch.cuda.is_initialized(),
    'sdp': (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled())}
before = state()
for name in sys.argv[1:]: importlib.import_module(f'metavoice.{name}')
after = state()
changed = [k for k in before if before[k]!=after[k]]
assert not changed, f'importing changed {changed}'
"""

def test_imports_do_no_work(tmp_path):
    home, cwd = tmp_path/"home", tmp_path/"cwd"
    home.mkdir(); cwd.mkdir()
    quiet = {k: str(home/k) for k in ("HOME","XDG_CACHE_HOME","XDG_CONFIG_HOME","HF_HOME","TORCH_HOME","TMPDIR","METAVOICE_CACHE")} | {
        "HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    (home/"TMPDIR").mkdir()
    run = subprocess.run([sys.executable, "-c", IMPORT_ALL, *(p.stem for p in MODULES)], cwd=cwd, capture_output=True, text=True,
                         env={**os.environ, **quiet})
    assert run.returncode == 0, run.stderr
    assert not run.stdout, f"importing printed {run.stdout!r}"
    made = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p not in (home, cwd, home/"TMPDIR")]
    assert not made, f"importing made {made}"
