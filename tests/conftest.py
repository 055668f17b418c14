"Where the golden values and the real recordings are looked for; tests that need them skip where they are absent."
import json, os, shutil, subprocess, sys, time
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


# A browser, and pages for it.

CHROMIUM = ("--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync "
            "--use-fake-device-for-media-stream --use-fake-ui-for-media-stream --window-size=1280,1000").split()

def until(condition, seconds=180):
    "What a condition comes to as soon as it holds; elements that are just being exchanged count as not yet."
    from selenium.common.exceptions import WebDriverException
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            if found := condition(): return found
        except WebDriverException as e: last = e
        time.sleep(.1)
    raise AssertionError(f"nothing came within {seconds} s" + (f": {last.msg}" if last else ""))

@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    "Headless Chromium, that hears heard.wav in its folder through the microphone, and downloads into downloads/."
    program, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not program or not driver: pytest.skip("no chromium and chromedriver here; Debian has them in the packages chromium and chromium-driver")
    selenium = pytest.importorskip("selenium.webdriver", reason="no selenium here, which is a part of metavoice[dev]")
    folder, options = tmp_path_factory.mktemp("browser"), selenium.ChromeOptions()
    options.binary_location, options.page_load_strategy = program, "none"
    for argument in [*CHROMIUM, f"--user-data-dir={folder/'profile'}", f"--use-file-for-fake-audio-capture={folder/'heard.wav'}"]: options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder/"downloads")})
    started = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    started.folder = folder
    yield started
    started.quit()

@pytest.fixture(scope="module")
def ui(tmp_path_factory):
    "Starts `metavoice ui` with arguments, in an empty folder that it has to leave empty unless another one is named; comes back with the process and the address once it is there."
    pytest.importorskip("voila", reason="no voila here, which is a part of metavoice[ui]")
    folder, started, root = tmp_path_factory.mktemp("ui"), [], Path(__file__).parents[1]
    (folder/"empty").mkdir()
    def start(*arguments, cwd=folder/"empty"):
        code = "import sys; from metavoice.cli import main; sys.exit(main())"
        started.append(subprocess.Popen([sys.executable, "-c", code, "ui", "--no-browser", *map(str, arguments)], cwd=cwd, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "METAVOICE_CACHE": str(folder/"cache")}))
        said = started[-1].stdout.readline()
        assert "http" in said, said
        return started[-1], said.split()[-1]
    yield start
    for each in started:
        each.terminate()
        each.wait(60)
    assert not list((folder/"empty").iterdir())
