"Fixtures of the user interface: nano, recordings, a browser, axe-core, and the pages of `metavoice ui`."
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from metavoice.audio.sound import load_audio
from metavoice.generate.tts import TTS

TEXTS = [
    "The dog slept.",
    "Where is the red book?",
    "The old man walked to the river.",
    "The cat slept quietly.",
    "The dog and the cat slept.",
    "Where is the dog?",
    "The old man slept.",
    "The cat walked to the river.",
    "Where is the old man?",
    "The red book is here.",
]


@pytest.fixture(scope="session")
def tts():
    "Return nano."
    return TTS.from_pretrained("nano", device="cpu")


@pytest.fixture(scope="session")
def bella(tts):
    "Return the reference recording of the voice af_bella."
    return load_audio(tts.bundle.voices["af_bella"])


@pytest.fixture(scope="session")
def spoken(tts):
    "Return ten sentences spoken by nano, which stand in for recordings: (text, audio)."
    return list(zip(TEXTS, tts.synthesise(TEXTS, "af_bella", seed=1, takes=1, denoise=False)))


@pytest.fixture(scope="session")
def recordings(spoken):
    "Return the spoken sentences as uploads: (file name, content, text)."
    return [(f"{n}.flac", audio.to_bytes("flac"), text) for n, (text, audio) in enumerate(spoken)]


@pytest.fixture(scope="session")
def hidden():
    "Return a function that says whether a widget is hidden."
    return lambda widget: "mv-none" in widget._dom_classes


@pytest.fixture(scope="session")
def send():
    "Return a function that uploads a file in parts, as a browser does."

    def send(upload, name, data, part=1000):
        for at in range(0, max(len(data), 1), part):
            content = dict(id=1, name=name, size=len(data), at=at)
            upload.receive(upload, content, [memoryview(data[at : at + part])])

    return send


CHROMIUM_OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-fake-device-for-media-stream --use-fake-ui-for-media-stream "
    "--window-size=1280,1000"
).split()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    "Return headless Chromium; its microphone plays heard.wav in `browser.folder`, and it downloads into downloads/."
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("chromium and chromedriver aren't installed; Debian packages: chromium, chromium-driver")
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium isn't installed, which metavoice[dev] needs")
    folder, options = tmp_path_factory.mktemp("browser"), selenium.ChromeOptions()
    options.binary_location, options.page_load_strategy = program, "none"
    profile = f"--user-data-dir={folder/'profile'}"
    microphone = f"--use-file-for-fake-audio-capture={folder/'heard.wav'}"
    for argument in [*CHROMIUM_OPTIONS, profile, microphone]:
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder/"downloads")})
    started = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    started.folder = folder
    yield started
    started.quit()


@pytest.fixture(scope="session")
def axe():
    "Return the source of axe-core."
    for package in ("axe_core_python", "axe_playwright_python"):
        spec = importlib.util.find_spec(package)
        if spec is not None:
            return (Path(spec.origin).parent/"axe.min.js").read_text(encoding="utf-8")
    pytest.skip("axe-core isn't installed; pip install axe-core-python, which metavoice[dev] does")


@pytest.fixture(scope="module")
def ui(tmp_path_factory):
    """Return a function that starts `metavoice ui` and returns the process and its URL.

    It runs in an empty folder, which must stay empty, unless another folder is given.
    """
    pytest.importorskip("voila", reason="voila isn't installed, which metavoice[ui] needs")
    folder, started = tmp_path_factory.mktemp("ui"), []
    root, empty = Path(__file__).parents[2], folder/"empty"
    empty.mkdir()
    environment = os.environ | dict(PYTHONPATH=str(root), HF_HUB_OFFLINE="1", METAVOICE_CACHE=str(folder/"cache"))

    def start(*arguments, cwd=empty):
        command = [sys.executable, "-m", "metavoice.cli", "ui", "--no-browser", *map(str, arguments)]
        process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        line = process.stdout.readline()
        assert "http" in line, line
        return process, line.split()[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait(600)
    assert not list(empty.iterdir())
