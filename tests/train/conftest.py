"Fixtures of the tests of `metavoice.train`."
from pathlib import Path

import pytest

from metavoice.bundle.load import load_bundle
from metavoice.train.corpus import write_demo_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def samples():
    "The folder of the six sample clips, each with a text file beside it."
    return ROOT / "nbs" / "samples"


@pytest.fixture(scope="session")
def nano():
    "The nano bundle on the CPU; tests must not change it."
    return load_bundle("nano", device="cpu")


@pytest.fixture(scope="session")
def demo_corpus(samples, tmp_path_factory):
    "The six sample clips as a corpus with evenly spaced words."
    return write_demo_corpus(tmp_path_factory.mktemp("demo") / "corpus", samples)


@pytest.fixture(scope="session")
def write_table():
    "A function that writes a table in the released format: (folder, *rows of (audio, text), name=…) → path."

    def write(folder, *rows, name="train.csv"):
        lines = [f"{audio}|{text}\n" for audio, text in rows]
        (folder / name).write_text("audio_files|captions\n" + "".join(lines), encoding="utf-8")
        return folder / name

    return write
