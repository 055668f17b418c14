"Batches on a Ray cluster."
import sys
from pathlib import Path

import pytest

from metavoice.core.errors import OptionError
from metavoice.jobs.batch import BatchRow, run_batch
from metavoice.jobs.ray_backend import speak_on_ray

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_cluster_gives_the_same_files(tts, tmp_path, monkeypatch, write_table):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    table = write_table(tmp_path, "id,text,temperature\na,The dog slept.,\nb,😀,\nc,Where is the red book?,0.5\n")
    options = dict(denoise=False, vocoder="codec", takes=1)

    def speak(rows, batch_size):
        return speak_on_ray("nano", dict(device="cpu"), rows, batch_size, workers=1, group=1)

    done = run_batch(tts, table, tmp_path / "out", speak=speak, **options)
    assert done["spoken"] == 2 and [row["id"] for row in done["failed"]] == ["b"], done
    run_batch(tts, table, tmp_path / "here", **options)
    for name in "ac":
        made, here = (tmp_path / folder / f"{name}.wav" for folder in ("out", "here"))
        assert made.read_bytes() == here.read_bytes()


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match=r'pip install "metavoice\[ray\]"'):
        next(speak_on_ray("nano", dict(device="cpu"), [BatchRow("a", "A.")]))
