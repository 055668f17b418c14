"README.md is rendered from nbs/index.ipynb, its links lead somewhere, and its Python runs."
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_is_rendered_from_the_index():
    command = [sys.executable, str(ROOT / ".ci" / "readme"), "--check"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_readme_has_at_most_200_lines():
    assert len(README.splitlines()) <= 200


DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "nbs").rglob("*.md"), *(ROOT / "metavoice").rglob("*.md")]
NOTEBOOKS = [*(ROOT / "nbs").rglob("*.ipynb"), ROOT / "colab_demo.ipynb"]


def read_markdown(path):
    "Return the text of a document, or the markdown of a notebook."
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


@pytest.mark.parametrize("path", DOCUMENTS + NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    pairs = re.findall(r'\]\(([^)#\s]+)[^)]*\)|src="([^"]+)"', read_markdown(path))
    local = [target for pair in pairs for target in pair if target and not re.match(r"\w+:|#", target)]
    missing = [target for target in local if not (path.parent / target).exists()]
    assert not missing


def test_readme_has_no_placeholders():
    assert not re.findall(r"\{\{.*?\}\}", README)


def test_python_in_the_readme_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)
    assert blocks
    voices = sorted((ROOT / "metavoice" / "nano" / "voices").iterdir())
    shutil.copy(next(path for path in voices if path.suffix in (".wav", ".flac", ".ogg", ".mp3")), tmp_path / "me.wav")
    (tmp_path / "readme.py").write_text("\n".join(blocks), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("readme.py")
    written = [path for path in tmp_path.glob("*.wav") if path.name != "me.wav"]
    assert written
    for path in written:
        assert 0.3 < soundfile.info(path).duration < 20, path
