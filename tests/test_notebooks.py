"Every notebook runs from top to bottom on a CPU with no network; cells flagged gpu or weights are left out."
import os, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = [*(p for pattern in ("[0-9]*", "howto_*", "benchmarks/*", "apps/*") for p in sorted((ROOT/"nbs").glob(f"{pattern}.ipynb"))), ROOT/"colab_demo.ipynb"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(notebook, tmp_path):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg", "METAVOICE_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
           "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])} # for cells that call the command
    code = "import sys; from nbdev.test import nbdev_test; nbdev_test(path=sys.argv[1], n_workers=0)"
    run = subprocess.run([sys.executable, "-c", code, str(notebook)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
