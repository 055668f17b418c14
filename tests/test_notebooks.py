"Every notebook runs from top to bottom on a CPU with no network; cells flagged gpu, weights or slow are left out."
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = [*sorted((ROOT / "nbs").rglob("*.ipynb")), ROOT / "colab_demo.ipynb"]
NOTEBOOKS = [path for path in NOTEBOOKS if ".ipynb_checkpoints" not in path.parts]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_notebook_runs(notebook, tmp_path):
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # for cells that call commands
    environment = dict(HF_HUB_OFFLINE="1", MPLBACKEND="agg", METAVOICE_CACHE=str(tmp_path), PYTHONPATH=str(ROOT))
    environment |= dict(PYTHONDONTWRITEBYTECODE="1", PATH=programs)
    code = "import sys; from nbdev.test import nbdev_test; nbdev_test(path=sys.argv[1], n_workers=0)"
    run = subprocess.run(
        [sys.executable, "-c", code, str(notebook)], cwd=ROOT, env={**os.environ, **environment},
        capture_output=True, text=True,
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
