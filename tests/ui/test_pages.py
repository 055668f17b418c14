"The pages as people see them: `metavoice ui` in headless Chromium."
import json, signal, time, urllib.error, urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import soundfile
import torch

from helpers import until
from metavoice.audio.sound import Audio, load_audio

NANO = Path(__file__).parents[1]/"metavoice"/"nano"
SPOKEN = ".mv-column:nth-child(2) .mv-player" # the player of what was said


class Page:
    "What a person does and sees."
    def __init__(self, driver, url): self.driver, self.url = driver, url

    def open(self, awaited=".mv-main"):
        self.driver.get("about:blank")
        until(lambda: self.js("return location.href") == "about:blank") # the driver doesn't wait, and the second way would be lost in the first
        self.driver.get(self.url)
        until(lambda: self.find(awaited))
        until(lambda: self.find(".mv-main").is_displayed())
        return self

    def find(self, selector): return self.driver.find_element("css selector", f".mv {selector}")
    def all(self, selector): return self.driver.find_elements("css selector", f".mv {selector}")
    def js(self, code, *arguments): return self.driver.execute_script(code, *arguments)
    def voice(self, name): next(b for b in self.all(".widget-toggle-button") if b.text.strip() == name).click()
    def voices(self): return [b.text.strip() for b in self.all(".widget-toggle-button")]
    def sound(self): return self.js(f"let a = document.querySelector('{SPOKEN} audio'); return a && [a.currentTime, a.duration, a.error && a.error.message]")

    def write(self, text):
        field = self.find("textarea")
        field.clear()
        field.send_keys(text)
        until(lambda: f"{len(text)} characters" in self.find(".mv-stack .mv-said").text)

    def speak(self):
        "Press the button, and wait for a sound that plays."
        self.js("window.before = document.querySelector('audio') && [...document.querySelectorAll('audio')].pop().src")
        self.find(".mv-main").click()
        until(lambda: self.js(f"let a = document.querySelector('{SPOKEN} audio'); return a && a.src && a.src != window.before && a.currentTime > 0"), 180)
        until(lambda: self.find(".mv-main").is_enabled())
        return until(lambda: self.sound()[0] > .3 and self.sound())


@pytest.fixture(scope="module")
def served(ui): return ui()

@pytest.fixture(scope="module")
def page(served, browser):
    load_audio(NANO/"voices"/"slt.ogg").resample(48000).save(browser.folder/"heard.wav")
    return Page(browser, served[1])


def test_a_page_wants_its_token(served):
    _, url = served
    port = urlsplit(url).port
    assert urlsplit(url).hostname == "127.0.0.1" and "token=" in url
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *args): return None
    opener = urllib.request.build_opener(Stay)
    for path, code in {"/": 302, "/?token=wrong": 302, "/api/kernels/00000000-0000-0000-0000-000000000000": 403, "/voila/files/clone.ipynb": 403}.items():
        with pytest.raises(urllib.error.HTTPError) as e: opener.open(f"http://127.0.0.1:{port}{path}")
        assert e.value.code == code or (code == 403 and e.value.code in (302, 404)), (path, e.value.code)

def test_a_sentence_in_an_uploaded_voice(page, tmp_path):
    page.open()
    assert page.voices() == ["rms", "awb", "slt", "+ your own"]
    page.write("Where is the red book?")
    page.voice("+ your own")
    upload = page.find("input[type=file]")
    (tmp_path/"odd.mp3").write_bytes(b"nothing of the kind")
    upload.send_keys(str(tmp_path/"odd.mp3"))
    until(lambda: "odd.mp3: the recording is in no supported format" in page.find(".mv-bad").text)
    slt = load_audio(NANO/"voices"/"slt.ogg") # as wav more than a Jupyter server takes in one message
    Audio(slt.resample(48000).samples.repeat(4)[:110*48000], 48000).save(tmp_path/"me.wav")
    assert (tmp_path/"me.wav").stat().st_size > 10e6
    upload.send_keys(str(tmp_path/"me.wav"))
    until(lambda: "me" in page.voices())
    until(lambda: "of speech" in page.find(".mv-small .mv-player-about").text)

    at, duration, error = page.speak()
    assert .5 < duration < 8 and at > 0 and error is None
    assert "me, seed" in page.driver.find_element("css selector", f"{SPOKEN} .mv-player-about").text
    until(lambda: page.sound()[0] == pytest.approx(page.sound()[1], abs=.05)) # it plays to its end
    assert page.js(f"return document.querySelector('{SPOKEN} .mv-picture').naturalWidth") > 300

    page.driver.find_element("css selector", f"{SPOKEN} .mv-save button").click() # wav is the first format
    file = until(lambda: next(iter((page.driver.folder/"downloads").glob("me-*.wav")), None))
    until(lambda: file.stat().st_size > 1000)
    assert soundfile.info(file).duration == pytest.approx(duration, abs=.05)

    page.driver.find_element("css selector", f"{SPOKEN} .mv-again").click()
    page.speak()
    seeds = {b.get_attribute("title").split("seed ")[1].split(",")[0] for b in until(lambda: len(page.all(".mv-past button")) == 2 and page.all(".mv-past button"))}
    assert len(seeds) == 1

    page.find("textarea").clear()
    page.find("textarea").send_keys("日本")
    until(lambda: page.all(".mv-stack .mv-bad"))
    page.find(".mv-main").click()
    until(lambda: len(page.all("[role=alert].mv-bad")) == 2)

    hosts = page.js("return performance.getEntriesByType('resource').map(e => e.name).filter(n => n.startsWith('http'))")
    assert hosts and {urlsplit(h).hostname for h in hosts} == {"127.0.0.1"}, "the page fetches from elsewhere"

def test_a_recorded_voice_and_a_stop(page):
    page.open()
    page.voice("+ your own")
    record = page.find(".mv-record button")
    until(lambda: record.is_displayed())
    record.click()
    until(lambda: page.find(".mv-record").get_attribute("data-on") == "true")
    assert "North Wind" in page.find("blockquote").text
    levels, began = set(), time.monotonic()
    while time.monotonic() < began + (5 if len(levels) > 10 else 20): # by the clock: a busy machine looks less often, and a recording ends after 30 s
        levels.add(page.js("return document.querySelector('.mv-meter').style.getPropertyValue('--mv-level')"))
        time.sleep(.1)
    assert len(levels) > 10, "the meter stands still"
    assert "of 0:30" in page.find(".mv-record .mv-clock").text
    record.click()
    until(lambda: "recording" in page.voices())
    assert 3 < until(lambda: page.js("return document.querySelector('.mv-small audio').duration")) < 30
    page.write("The old man walked to the river. " * 30)
    page.find(".mv-main").click()
    until(lambda: "drawn" in page.find(".mv-doing").text)
    next(b for b in page.all("button") if b.text == "Stop").click()
    until(lambda: any("Stopped." in n.text for n in page.all(".mv-said")), 20)
    until(lambda: page.find(".mv-main").is_enabled(), 20)

def test_a_page_that_is_left_ends_its_process(served, page):
    import psutil
    running = lambda: {p.pid for p in psutil.Process(served[0].pid).children() if any("ipykernel" in word for word in p.cmdline())}
    page.open()
    here = running()
    page.open()
    until(lambda: not running() & here, 60)
    assert len(running()) == 1

@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_every_width_and_both_lights(page, dark):
    if page.driver.current_url != page.url: page.open()
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(features=[dict(name="prefers-color-scheme", value="dark" if dark else "light")]))
    settings = page.find(".jupyter-widget-Collapse-header")
    if not page.find(".widget-readout").is_displayed(): settings.click()
    for width in (1280, 800, 390):
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 500))
        time.sleep(.5)
        wide = lambda: page.js("let e = document.querySelector('#rendered_cells'); return [Math.max(0, e.scrollWidth - e.clientWidth), [...document.querySelectorAll('.mv button, .mv textarea, .mv select')]"
                               ".filter(b => b.offsetParent && b.getBoundingClientRect().right > innerWidth).map(b => b.outerHTML.slice(0, 80))]")
        end = time.monotonic() + 10
        while wide() != [0, []]: assert time.monotonic() < end, (width, wide())
    luminance = page.js("""
        const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v/255).map(v => v <= .04045 ? v/12.92 : ((v+.055)/1.055)**2.4); return .2126*r + .7152*g + .0722*b };
        const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)|transparent/.test(c)) return c } return 'rgb(255, 255, 255)' };
        return [...document.querySelectorAll('.mv-title, .mv-said, .mv-name, small, .widget-readout, .mv-main, .widget-toggle-button, .mv-player-about, textarea, select')]
            .filter(e => e.offsetParent && e.textContent.trim() && e.closest('.mv')).map(e => [e.className, light(getComputedStyle(e).color), light(behind(e))])""")
    assert len(luminance) > 10
    for name, ink, paper in luminance:
        contrast = (max(ink, paper) + .05) / (min(ink, paper) + .05)
        assert contrast >= 4.5, (name, contrast) # WCAG 2.2, AA
    assert (max(paper for _, _, paper in luminance[:1]) < .1) == dark

def test_ctrl_c_stops_it(served):
    process, _ = served
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


# finetuning

TEXTS = ["The dog slept.", "Where is the red book?", "The old man walked to the river.", "The cat slept quietly.", "The dog and the cat slept.", "Where is the dog?",
         "The old man slept.", "The cat walked to the river.", "Where is the old man?", "The red book is here."]

def test_a_voice_is_taught_stopped_gone_on_with_and_tried(ui, browser, tmp_path):
    pytest.importorskip("peft", reason="no peft here, which is a part of metavoice[finetune]")
    from metavoice.generate.tts import TTS
    from selenium.webdriver.support.ui import Select
    for n, (text, audio) in enumerate(zip(TEXTS, TTS.from_pretrained("nano", device="cpu").synthesise(TEXTS, "slt", seed=1, denoise=False))):
        audio.save(tmp_path/f"{n}.flac")
        (tmp_path/f"{n}.txt").write_text(text)
    work = tmp_path/"work"
    work.mkdir()
    process, url = ui("finetune", cwd=work)
    page = Page(browser, url)
    page.open("input[type=file]")
    upload = page.find("input[type=file]")
    for kind in ("flac", "txt"): upload.send_keys("\n".join(str(tmp_path/f"{n}.{kind}") for n in range(10))); until(lambda: "10 recordings" in page.find(".mv-good").text)
    until(lambda: all(f.get_attribute("value") for f in page.all(".mv-recording input")) and len(page.all(".mv-recording input")) == 10)
    press = lambda label: until(lambda: next((b for b in page.all("button") if b.text.strip() == label and b.is_enabled()), None)).click()
    says = lambda words: any(words in n.text for n in page.all(".mv-said"))
    def number(selector, value, nth=0):
        page.all(selector)[nth].send_keys("\ue009a\ue000" + f"{value}\t") # Ctrl-A, then over it
        until(lambda: page.all(selector)[nth].get_attribute("value") == str(value))
    press("Check the recordings")
    until(lambda: says("can be learnt from"))
    assert "10 clips" in page.find(".mv-report").text

    Select(page.find(".mv-length select")).select_by_visible_text("steps")
    page.find(".jupyter-widget-Collapse-header").click()
    until(lambda: page.all(".mv-inner input[type=number]")[1].is_displayed())
    number(".mv-inner input[type=number]", 2, 1)
    number(".mv-length input", 100000)
    press("Train")
    until(lambda: len(page.all(".mv-past > button")) >= 2 and page.all(".mv-chart circle"), 300)
    until(lambda: page.all(".mv-past > button")[0].click() or True) # a sample is heard while it learns
    until(lambda: page.js(f"let a = document.querySelector('{SPOKEN} audio'); return a && a.duration > 0 && a.currentTime > 0"))
    page.driver.save_screenshot(str(tmp_path/"learning.png"))
    press("Stop")
    until(lambda: says("Stopped; what was learnt is kept"), 300)
    reached = json.loads((work/"my-voice"/"first"/"log.jsonl").read_text().splitlines()[-1])["step"]
    number(".mv-length input", reached + 2)
    press("Go on with this run")
    until(lambda: says("Finished"), 300)
    assert f"step {reached + 2}" in (page.find(".mv-chart").text + (work/"my-voice"/"first"/"log.jsonl").read_text().replace('"step": ', "step "))

    until(lambda: len(page.driver.find_elements("css selector", ".mv")) == 2) # the page for speaking, with the voice that was learnt
    inside = lambda selector: page.driver.find_elements("css selector", ".mv")[1].find_element("css selector", selector)
    until(lambda: inside(".widget-toggle-button.mod-active").text == "my-voice") # its buttons are made anew when a voice is added
    until(lambda: page.js("arguments[0].scrollIntoView()", inside(".mv-main")) or True)
    until(lambda: inside(".mv-main").rect == (time.sleep(.5) or inside(".mv-main").rect)) # the voice's player comes in above it: a click on what moves is lost
    until(lambda: inside(".mv-main").click() or True)
    until(lambda: page.js("let a = [...document.querySelectorAll('.mv')].pop().querySelector('.mv-column:nth-child(2) audio'); return a && a.duration > .3 && a.currentTime > 0"), 300)
