"Fixtures and helpers of the tests of long jobs."
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import metavoice.generate.render as render
from metavoice.core.errors import MetaVoiceError
from metavoice.generate.tts import TTS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tts():
    return TTS.from_pretrained(device="cpu")


@pytest.fixture(scope="session")
def command():
    "The command line in a process of its own, and its environment."
    args = [sys.executable, "-m", "metavoice.cli"]
    return SimpleNamespace(args=args, env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"))


@pytest.fixture
def quick(monkeypatch):
    """Segments sound like noise of their own seed, at once; returns the list of the segments that were asked for.

    Segments with the word silence have no sound, those with the word endless were cut."""
    asked = []

    def vocode_segments(segments, options, source, *, on_progress=None, timings=None, raise_errors=True):
        failed = set()
        for segment in segments:
            asked.append(segment)
            segment.cut = "endless" in segment.text
            if segment.text_index in failed:
                continue
            if "silence" in segment.text:
                segment.error = MetaVoiceError(f"nothing was said for {segment.text!r}")
                if raise_errors:
                    raise segment.error
                failed.add(segment.text_index)
                yield segment, None
                continue
            generator = torch.Generator().manual_seed(segment.seed)
            yield segment, .1 * torch.randn(1000 + segment.number, generator=generator)

    monkeypatch.setattr(render, "vocode_segments", vocode_segments)
    return asked


@pytest.fixture(scope="session")
def write_table():
    "A function that writes a table into a folder."

    def write(folder, text, name="m.csv"):
        folder.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return write


@pytest.fixture(scope="session")
def read_results():
    "A function that reads the results log of a folder."
    return lambda folder: [json.loads(line) for line in (folder / "results.jsonl").read_text("utf-8").splitlines()]
