"Pages: the notebooks behind them, what is refused, and `metavoice ui` in headless Chromium."
import json
import signal
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
import soundfile
from browser_page import PLAYER, Page
from helpers import until

pytest.importorskip("anywidget", reason="anywidget isn't installed, which metavoice[ui] needs")

from metavoice.audio.sound import Audio, load_audio
from metavoice.core.errors import BundleError, OptionError
from metavoice.ui.pages import listen, make_app_notebook, serve_page

ROOT = Path(__file__).parents[2]
NANO = ROOT/"metavoice"/"nano"


# without a browser


@pytest.mark.parametrize("app", ["clone", "finetune"])
def test_the_notebooks_in_the_repository_are_those_that_are_served(app):
    cells = nbformat.read(ROOT/"nbs"/"apps"/f"{app}.ipynb", 4).cells
    served = make_app_notebook(app, "nano").cells
    assert [c.source for c in cells if c.cell_type == "code"] == [c.source for c in served]


def test_only_the_finetuning_notebook_has_a_folder():
    assert "FinetuneApp('nano', '/a')" in make_app_notebook("finetune", "nano", "/a").cells[0].source
    assert "/a" not in make_app_notebook("clone", "nano", "/a").cells[0].source


def test_a_model_name_stays_a_string():
    source = make_app_notebook(model="a'); import os; os.abort() #\\").cells[0].source
    assert compile(source, "cell", "exec") and "CloneApp(\"a'); import os; os.abort() #\\\\\")" in source


@pytest.mark.parametrize("port", [None, 0])
def test_the_server_of_a_page_does_not_wait_in_accept(port):
    sockets = listen("127.0.0.1", port)
    try:
        for one in sockets:
            with pytest.raises(BlockingIOError):
                one.accept()
    finally:
        for one in sockets:
            one.close()


def test_errors_are_raised_before_the_page_opens():
    with pytest.raises(OptionError, match="needs a token"):
        serve_page(host="0.0.0.0", token="")
    with pytest.raises(BundleError, match="there is no model"):
        serve_page(model="/nowhere")
    with pytest.raises(OptionError, match="no app"):
        make_app_notebook("sing")


def test_the_package_contains_the_files_of_the_page(monkeypatch):
    import setuptools

    options = {}
    monkeypatch.setattr(setuptools, "setup", lambda **given: options.update(given))
    monkeypatch.chdir(ROOT)
    code = compile((ROOT/"setup.py").read_text(), str(ROOT/"setup.py"), "exec")
    exec(code, dict(__file__=str(ROOT/"setup.py"), __name__="setup"))
    patterns = options["package_data"]["metavoice"]
    packed = {p for pattern in patterns for p in (ROOT/"metavoice").glob(pattern)}
    assert {p for p in (ROOT/"metavoice"/"web").rglob("*") if p.is_file()} <= packed
    assert {"player.js", "upload.js", "look.css", "index.html.j2"} <= {p.name for p in packed}


# in a browser


@pytest.fixture(scope="module")
def served(ui):
    "Return the process and the URL of the clone page."
    return ui()


@pytest.fixture(scope="module")
def page(served, browser):
    "Return the clone page in a browser that hears af_bella through its microphone."
    load_audio(NANO/"voices"/"af_bella.ogg").resample(48000).save(browser.folder/"heard.wav")
    return Page(browser, served[1])


@pytest.mark.slow
def test_a_page_requires_its_token(served):
    _, url = served
    port = urlsplit(url).port
    assert urlsplit(url).hostname == "127.0.0.1" and "token=" in url

    class KeepRedirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *args):
            return None

    opener = urllib.request.build_opener(KeepRedirects)
    kernel = "/api/kernels/00000000-0000-0000-0000-000000000000"
    for path, code in {"/": 302, "/?token=wrong": 302, kernel: 403, "/voila/files/clone.ipynb": 403}.items():
        with pytest.raises(urllib.error.HTTPError) as e:
            opener.open(f"http://127.0.0.1:{port}{path}")
        assert e.value.code == code or (code == 403 and e.value.code in (302, 404)), (path, e.value.code)
    with pytest.raises(urllib.error.HTTPError) as e:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60)
    said = e.value.read().decode()
    assert e.value.code == 401 and "the token is in the terminal where" in said and "<form" not in said
    assert "password" not in said.lower() and "jupyter" not in said.lower()


def upload_voices(page, folder):
    "Upload a file that isn't sound, and then a voice that is larger than a message."
    upload = page.find("input[type=file]")
    (folder/"odd.mp3").write_bytes(b"nothing of the kind")
    upload.send_keys(str(folder/"odd.mp3"))
    until(lambda: page.says("can't read odd.mp3: it isn't audio"), 60)
    bella = load_audio(NANO/"voices"/"af_bella.ogg").resample(48000)
    Audio(bella.samples.repeat(4)[:110*48000], 48000).save(folder/"me.wav")
    assert (folder/"me.wav").stat().st_size > 10e6
    upload.send_keys(str(folder/"me.wav"))
    until(lambda: "me" in page.voices())
    until(lambda: "of speech" in page.find(".mv-small .mv-player-about").text)


def download(page, format="wav", name="me-*", size=1000):
    "Download the speech in a format, and return the file when it has more than some bytes."
    from selenium.webdriver.support.ui import Select

    save = page.driver.find_element("css selector", f"{PLAYER} .mv-save")
    Select(save.find_element("css selector", "select")).select_by_visible_text(format)
    save.find_element("css selector", "button").click()
    file = until(lambda: next(iter((page.driver.folder/"downloads").glob(f"{name}.{format}")), None))
    until(lambda: file.stat().st_size > size)
    return file


@pytest.mark.slow
def test_a_sentence_in_an_uploaded_voice(page, tmp_path):
    page.open()
    assert page.voices() == ["af_heart", "af_bella", "am_michael", "am_fenrir", "bf_emma", "bm_george", "+ your own"]
    page.write("Where is the red book?")
    page.choose_voice("+ your own")
    upload_voices(page, tmp_path)

    at, duration, error = page.speak()
    assert .5 < duration < 8 and at > 0 and error is None
    assert "me, seed" in page.driver.find_element("css selector", f"{PLAYER} .mv-player-about").text
    until(lambda: page.sound()[0] == pytest.approx(page.sound()[1], abs=.05))  # it plays to its end
    assert page.js(f"return document.querySelector('{PLAYER} .mv-picture').naturalWidth") > 300
    assert soundfile.info(download(page)).duration == pytest.approx(duration, abs=.05)

    page.driver.find_element("css selector", f"{PLAYER} .mv-repeat").click()
    page.speak()
    rows = until(lambda: len(page.all(".mv-past button")) == 2 and page.all(".mv-past button"))
    assert len({row.get_attribute("title").split("seed ")[1].split(",")[0] for row in rows}) == 1

    page.find("textarea").clear()
    page.find("textarea").send_keys("日本")
    until(lambda: page.shown(".mv-stack .mv-bad"), 60)
    page.find(".mv-main").click()
    until(lambda: page.shown(".mv-column:nth-child(2) [role=alert].mv-bad"), 60)
    until(lambda: len(page.shown("[role=alert].mv-bad")) == 1, 60)  # said once, at the button
    page.find("textarea").send_keys(" The dog slept.")
    until(lambda: not page.shown("[role=alert].mv-bad"), 60)

    urls = page.js("return performance.getEntriesByType('resource').map(e => e.name)")
    hosts = {urlsplit(url).hostname for url in urls if url.startswith("http")}
    assert hosts == {"127.0.0.1"}, "the page fetches from elsewhere"


MARKED = "return [...document.querySelectorAll('.mv-words [aria-current]')].map(e => e.textContent)"


@pytest.mark.slow
def test_words_captions_and_another_take(page):
    page.open()
    page.write("It cost $5. <b>Was</b> it 2 < 3 & more?")
    page.speak()
    words = page.js(f"return [...document.querySelectorAll('{PLAYER} .mv-words span')].map(e => e.textContent)")
    assert " ".join(words).startswith("It cost $5. Was it 2") and words[-1] == "more?"
    until(lambda: page.js(f"return document.querySelector('{PLAYER} audio').ended") and not page.js(MARKED))
    page.all(".mv-words span")[2].click()
    until(lambda: page.js(MARKED) == ["$5."])
    assert 0 < page.sound()[0] < page.sound()[1]/2

    def about():
        return page.driver.find_element("css selector", f"{PLAYER} .mv-player-about").text

    seed = int(about().split("seed ")[1].split(",")[0])
    captions = [download(page, format, f"af_heart-{seed}", 20).read_text("utf-8") for format in ("srt", "vtt")]
    assert captions[0].startswith("1\n00:00:00,") and "It cost $5." in captions[0]
    assert captions[1].startswith("WEBVTT\n\n00:00:00.") and "2 &lt; 3 &amp;" in captions[1]

    until_resting(lambda: page.button("Another take"))
    page.press("Another take")
    until(lambda: f"seed {seed + 1}," in about(), 180)
    rows = until(lambda: len(rows := page.all(".mv-past button")) == 2 and rows)
    assert [row.text.split(" · ")[:2] for row in rows] == [
        ["Take 2", f"seed {seed + 1}"], ["Take 1", f"seed {seed}"]
    ]
    assert page.js(f"return document.querySelector('{PLAYER} .mv-save select').value") == "vtt"  # it stays chosen
    second = soundfile.read(download(page, name=f"af_heart-{seed + 1}"))[0]
    until_resting(lambda: page.all(".mv-past button")[1])
    page.all(".mv-past button")[1].click()
    until(lambda: f"seed {seed}," in about() and page.sound()[0] > 0)
    first = soundfile.read(download(page, name=f"af_heart-{seed}"))[0]
    assert len(first) and (len(first) != len(second) or abs(first - second).max() > 1e-3)


def until_resting(find):
    "Wait until a button rests that a new player above it moves; a click on a moving button is lost."

    def resting():
        before = find().rect
        time.sleep(.5)
        return find().rect == before

    until(resting)


@pytest.mark.slow
def test_a_recorded_voice_and_stop(page):
    page.open()
    page.choose_voice("+ your own")
    record = page.find(".mv-record button")
    until(lambda: record.is_displayed())
    record.click()
    until(lambda: page.find(".mv-record").get_attribute("data-on") == "true")
    assert "North Wind" in page.find("blockquote").text
    levels, began = set(), time.monotonic()
    # A recording ends after 30 s, and a busy machine reads the level less often.
    while time.monotonic() < began + (5 if len(levels) > 10 else 20):
        levels.add(page.js("return document.querySelector('.mv-meter').style.getPropertyValue('--mv-level')"))
        time.sleep(.1)
    assert len(levels) > 10, "the meter doesn't move"
    assert "of 0:30" in page.find(".mv-record .mv-clock").text
    record.click()
    until(lambda: "recording" in page.voices())
    assert 3 < until(lambda: page.js("return document.querySelector('.mv-small audio').duration")) < 30

    page.write("The old man walked to the river. " * 30)
    until_resting(lambda: page.find(".mv-main"))
    page.find(".mv-main").click()
    until(lambda: "generated" in page.find(".mv-doing").text)
    page.button("Stop").click()
    until(lambda: page.says("Stopped."), 20)
    until(lambda: page.find(".mv-main").is_enabled(), 20)


@pytest.mark.slow
def test_closing_a_page_ends_its_process(served, page):
    import psutil

    def running():
        children = psutil.Process(served[0].pid).children()
        return {p.pid for p in children if any("ipykernel" in word or word == "page" for word in p.cmdline())}

    page.open()
    here = running()
    page.open()
    until(lambda: not running() & here, 60)
    assert len(running()) == 1


OVERFLOW = """
const cells = document.querySelector('#rendered_cells');
const outside = [...document.querySelectorAll('.mv button, .mv textarea, .mv select')]
  .filter(b => b.offsetParent && b.getBoundingClientRect().right > innerWidth).map(b => b.outerHTML.slice(0, 80));
return [Math.max(0, cells.scrollWidth - cells.clientWidth), outside]"""

LUMINANCE = r"""
const linear = v => v <= .04045 ? v/12.92 : ((v+.055)/1.055)**2.4;
const luminance = c => {
  const [r, g, b] = c.match(/[\d.]+/g).slice(0, 3).map(v => linear(v/255));
  return .2126*r + .7152*g + .0722*b;
};
const background = e => {
  for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\)|transparent/.test(c)) return c;
  }
  return 'rgb(255, 255, 255)';
};
const names = '.mv-title, .mv-said, .mv-name, small, .widget-readout, .mv-main, .mv-choose b, ' +
  '.mv-player-about, textarea, select';
return [...document.querySelectorAll(names)].filter(e => e.offsetParent && e.textContent.trim() && e.closest('.mv'))
  .map(e => [e.className, luminance(getComputedStyle(e).color), luminance(background(e))])"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_layout_and_contrast(page, dark):
    if page.driver.current_url != page.url:
        page.open()
    page.set_theme(dark)
    if not page.find(".widget-readout").is_displayed():
        page.find(".mv-toggle button").click()
    for width in (1280, 800, 390):
        page.set_width(width)
        time.sleep(.5)
        end = time.monotonic() + 10
        while (found := page.js(OVERFLOW)) != [0, []]:
            assert time.monotonic() < end, (width, found)
    luminance = page.js(LUMINANCE)
    assert len(luminance) > 10
    for name, ink, paper in luminance:
        contrast = (max(ink, paper) + .05) / (min(ink, paper) + .05)
        assert contrast >= 4.5, (name, contrast)  # WCAG 2.2, AA
    assert (luminance[0][2] < .1) == dark


@pytest.mark.slow
def test_pages_that_start_at_the_same_time_get_different_ports(ui):
    with ThreadPoolExecutor() as pool:
        started = list(pool.map(lambda _: ui(), range(2)))
    ports = [urlsplit(url).port for _, url in started]
    for process, _ in started:
        process.send_signal(signal.SIGINT)
        assert process.wait(600) == 0
    assert len(set(ports)) == 2


@pytest.mark.slow
def test_ctrl_c_stops_the_server(served):
    process, _ = served
    process.send_signal(signal.SIGINT)
    assert process.wait(600) == 0


# finetuning


def upload_recordings(page, spoken, folder):
    "Upload ten recordings and their texts."
    for n, (text, audio) in enumerate(spoken):
        audio.save(folder/f"{n}.flac")
        (folder/f"{n}.txt").write_text(text)
    page.open("input[type=file]")
    upload, fields = page.find("input[type=file]"), ".mv-recording input"
    for suffix in ("flac", "txt"):
        upload.send_keys("\n".join(str(folder/f"{n}.{suffix}") for n in range(10)))
        until(lambda: "10 recordings" in page.find(".mv-good").text)
    until(lambda: len(page.all(fields)) == 10 and all(f.get_attribute("value") for f in page.all(fields)))


def last_step(run):
    "Return the last step in the log of a run."
    return json.loads((run/"first"/"log.jsonl").read_text().splitlines()[-1])["step"]


def speak_in_preview(page):
    "Press Speak on the clone page below the finetuning page, and wait for the sound."
    find = page.driver.find_elements
    until(lambda: len(find("css selector", ".mv")) == 2)

    def inside(selector):
        return find("css selector", ".mv")[1].find_element("css selector", selector)

    until(lambda: inside(".mv-choose[aria-pressed=true]").accessible_name == "my-voice")
    until(lambda: page.js("arguments[0].scrollIntoView()", inside(".mv-main")) or True)

    until_resting(lambda: inside(".mv-main"))
    until(lambda: inside(".mv-main").click() or True)
    playing = ("const a = [...document.querySelectorAll('.mv')].pop().querySelector('.mv-column:nth-child(2) audio');"
               "return a && a.duration > .3 && a.currentTime > 0")
    until(lambda: page.js(playing), 300)


@pytest.mark.slow
def test_a_voice_is_trained_stopped_continued_and_tried(ui, browser, spoken, tmp_path):
    pytest.importorskip("peft", reason="peft isn't installed, which metavoice[finetune] needs")
    from selenium.webdriver.support.ui import Select

    work = tmp_path/"work"
    work.mkdir()
    page = Page(browser, ui("finetune", cwd=work)[1])
    upload_recordings(page, spoken, tmp_path)
    page.press("Check the recordings")
    until(lambda: page.says("can be used for training"))
    assert "10 clips" in page.find(".mv-report").text

    Select(page.find(".mv-length select")).select_by_visible_text("steps")
    page.find(".mv-toggle button").click()
    until(lambda: page.all(".mv-inner input[type=number]")[1].is_displayed())
    page.set_number(".mv-inner input[type=number]", 2, 1)
    page.set_number(".mv-length input", 100000)
    page.press("Train")
    until(lambda: len(page.all(".mv-past > button")) >= 2 and page.all(".mv-chart circle"), 300)
    until(lambda: page.all(".mv-past > button")[0].click() or True)  # a sample is heard during the training
    until(lambda: page.js(f"const a = document.querySelector('{PLAYER} audio');"
                          "return a && a.duration > 0 && a.currentTime > 0"))
    page.press("Stop")
    until(lambda: page.says("Stopped; the training so far is kept"), 300)
    reached = last_step(work/"my-voice")
    page.set_number(".mv-length input", reached + 2)
    page.press("Continue this run")
    until(lambda: page.says("Finished"), 300)
    assert f"step {reached + 2}" in page.find(".mv-chart").text or last_step(work/"my-voice") == reached + 2
    speak_in_preview(page)
