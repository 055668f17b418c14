"README.md is rendered from nbs/index.ipynb, its links lead somewhere, and its Python runs."
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


@pytest.mark.parametrize("name", ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "metavoice/nano/NANO.md"))
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    pairs = re.findall(r'\]\(([^)#]+)\)|src="([^"]+)"', text)
    local = [target for pair in pairs for target in pair if target and not target.startswith("http")]
    missing = [target for target in local if not ((ROOT / name).parent / target).exists()]
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
