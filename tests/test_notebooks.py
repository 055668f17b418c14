"Every notebook runs from top to bottom on a CPU with no network; cells flagged gpu, weights or slow are left out."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metavoice.train.sentences import WORDNET_DIR

ROOT = Path(__file__).parents[1]
NOTEBOOKS = [*sorted((ROOT / "nbs").rglob("*.ipynb")), ROOT / "colab_demo.ipynb"]
NOTEBOOKS = [path for path in NOTEBOOKS if ".ipynb_checkpoints" not in path.parts]
NEED_WORDNET = ("02_texts", "05_shards")


@pytest.fixture(scope="module")
def runner():
    "A process that runs notebooks in forked children; the slow imports happen once."
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork; `nbdev_test` runs the notebooks")
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # for cells that call commands
    environment = dict(HF_HUB_OFFLINE="1", PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1", PATH=programs)
    command = [sys.executable, str(Path(__file__).with_name("notebook_runner.py"))]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_notebook_runs(runner, notebook, tmp_path):
    if notebook.stem in NEED_WORDNET and not Path(WORDNET_DIR, "data.noun").exists():
        pytest.skip("there is no WordNet; on Debian: apt-get install wordnet-base")
    log = tmp_path / "log"
    print(json.dumps([str(notebook), str(tmp_path / "cache"), str(log)]), file=runner.stdin, flush=True)
    code = runner.stdout.readline().strip()
    assert code == "0", log.read_text(encoding="utf-8")[-4000:]
