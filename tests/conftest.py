"Fixtures of all tests: golden values and real recordings. A test that needs what is absent is skipped."
import json
import os
import signal
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models gain nothing from more, and workers run side by side
os.environ["METAVOICE_VOICES"] = os.path.join(tempfile.gettempdir(), f"no-voices-{os.getpid()}")  # not the user's own

import numpy as np  # noqa: E402

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in background jobs of a shell; child processes inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent
SHARED = TESTS.parents[1] / "shared"


class GoldenFolder(type(Path())):
    "A folder of golden files; a file that it lacks skips the test."

    def __truediv__(self, name):
        path = Path(self, name)
        if not path.exists():
            pytest.skip(f"{self} has no {name}; METAVOICE_GOLDEN can name a folder with the full set")
        return path


class GoldenArrays(dict):
    "The arrays of a golden file; one that it lacks skips the test."

    def __missing__(self, key):
        pytest.skip(f"these golden values have no {key}; METAVOICE_GOLDEN can name a folder with the full set")


def read_arrays(path):
    with np.load(path) as arrays:
        return GoldenArrays(arrays)


@pytest.fixture(scope="session")
def golden():
    "The folder named by METAVOICE_GOLDEN, the full set beside the repository, or the subset in tests/golden."
    named = os.environ.get("METAVOICE_GOLDEN")
    if named and not Path(named).is_dir():
        pytest.fail(f"METAVOICE_GOLDEN is {named!r}, which is not a folder")
    full = SHARED / "golden"
    return GoldenFolder(named or (full if full.is_dir() else TESTS / "golden"))


@pytest.fixture(scope="session")
def full_golden(golden):
    "A golden folder that loads as a bundle of the released format."
    for name in ("first_stage.pt", "second_stage.pt", "speaker_encoder.pt", "mbd_comp_8.pt"):
        golden / name
    if len(read_arrays(golden / "mbd_expected.npz")) < 20:
        pytest.skip(f"{golden} holds a subset; METAVOICE_GOLDEN can name a folder with the full set")
    return Path(golden)


@pytest.fixture(scope="session")
def expected(golden):
    return read_arrays(golden / "expected.npz")


@pytest.fixture(scope="session")
def expected_json(golden):
    return json.loads((golden / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def mbd_expected(golden):
    return read_arrays(golden / "mbd_expected.npz")


@pytest.fixture(scope="session")
def speech():
    "A folder of real recordings: METAVOICE_SPEECH, or the one beside the repository."
    path = Path(os.environ.get("METAVOICE_SPEECH", SHARED / "data"))
    if not path.is_dir():
        pytest.skip(f"there are no recordings at {path}; METAVOICE_SPEECH can name a folder with them")
    return path


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    "Let one worker of pytest-xdist run the tests of a file, which share fixtures, and the notebooks of a folder."
    for item in items:
        file = Path(item.fspath)
        notebook = getattr(item, "callspec", None) and item.callspec.params.get("notebook")
        item.add_marker(pytest.mark.xdist_group(str(notebook.parent if notebook else file)))
