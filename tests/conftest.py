"Where the golden values and the real recordings are looked for; tests that need them skip where they are absent."
import json, os
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).parents[2] / "shared"


def folder(variable, name):
    path = Path(os.environ.get(variable, SHARED / name))
    if not path.is_dir(): pytest.skip(f"no {name} at {path}; set {variable} to the folder that holds it")
    return path

@pytest.fixture(scope="session")
def golden(): return folder("METAVOICE_GOLDEN", "golden")

@pytest.fixture(scope="session")
def speech(): return folder("METAVOICE_SPEECH", "data")

@pytest.fixture(scope="session")
def expected(golden): return np.load(golden / "expected.npz")

@pytest.fixture(scope="session")
def expected_json(golden): return json.loads((golden / "expected.json").read_text())

@pytest.fixture(scope="session")
def mbd_expected(golden): return np.load(golden / "mbd_expected.npz")
