"A headless browser, and pages for it."
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-fake-device-for-media-stream "
    "--use-fake-ui-for-media-stream --window-size=1280,1000"
).split()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    "Headless Chromium; its microphone plays heard.wav of its folder, and it downloads into downloads/."
    program, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not program or not driver:
        pytest.skip("needs chromium and chromedriver; Debian has them in the packages chromium and chromium-driver")
    selenium = pytest.importorskip("selenium.webdriver", reason="needs selenium, a part of metavoice[dev]")
    folder, options = tmp_path_factory.mktemp("browser"), selenium.ChromeOptions()
    options.binary_location, options.page_load_strategy = program, "none"
    own = [f"--user-data-dir={folder / 'profile'}", f"--use-file-for-fake-audio-capture={folder / 'heard.wav'}"]
    for argument in CHROMIUM_FLAGS + own:
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    started = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    started.folder = folder
    yield started
    started.quit()


@pytest.fixture(scope="module")
def ui(tmp_path_factory):
    """Start `metavoice ui` with arguments; returns the process and the address.

    It runs in an empty folder unless `cwd` names another, and has to leave that folder empty."""
    pytest.importorskip("voila", reason="needs voila, a part of metavoice[ui]")
    folder, started = tmp_path_factory.mktemp("ui"), []
    (folder / "empty").mkdir()
    environment = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "METAVOICE_CACHE": str(folder / "cache")}

    def start(*arguments, cwd=folder / "empty"):
        command = [sys.executable, "-m", "metavoice.cli", "ui", "--no-browser", *map(str, arguments)]
        process = subprocess.Popen(
            command, cwd=cwd, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        started.append(process)
        line = process.stdout.readline()
        assert "http" in line, line
        return process, line.split()[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait(60)
    assert not list((folder / "empty").iterdir())
