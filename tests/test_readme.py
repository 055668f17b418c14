"The README says what index.ipynb says, and its Python runs."
import re, runpy, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT/"README.md").read_text(encoding="utf-8")


def test_readme_is_rendered_from_the_index():
    run = subprocess.run([sys.executable, str(ROOT/".ci"/"readme"), "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

def test_links_lead_somewhere():
    targets = re.findall(r'\]\(([^)#]+)\)|src="([^"]+)"', README)
    local = [t for pair in targets for t in pair if t and not t.startswith("http")]
    assert local and not (missing := [t for t in local if not (ROOT/t).exists()]), missing

def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"\{\{.*?\}\}", README)

def test_python_in_the_readme_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)
    assert blocks
    reference = next(p for p in sorted((ROOT/"metavoice"/"nano"/"voices").iterdir()) if p.suffix in (".wav",".flac",".ogg",".mp3"))
    shutil.copy(reference, tmp_path/"me.wav")
    (tmp_path/"readme.py").write_text("\n".join(blocks), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("readme.py")
    import soundfile
    written = [p for p in tmp_path.glob("*.wav") if p.name!="me.wav"]
    assert written
    for path in written: assert .3 < soundfile.info(path).duration < 20, path
