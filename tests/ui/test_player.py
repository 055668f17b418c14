"The words of the player in a browser, with a model that is a dictionary: no kernel runs."
import functools
import http.server
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from browser_page import Page, assert_accessible
from helpers import until

pytest.importorskip("anywidget", reason="anywidget isn't installed, which metavoice[ui] needs")

from metavoice.audio.sound import Audio, Word
from metavoice.ui.look import Player

WEB = Path(__file__).parents[2]/"metavoice"/"web"
ENTER, RIGHT, LEFT, HOME, END, TAB = "\ue007", "\ue014", "\ue012", "\ue011", "\ue010", "\ue004"
ODD = "<img src=x onerror=document.title='bad'> &amp; <b>bold</b> </span><script>document.title=1</script> 'quoted\""

HTML = """<!doctype html><html lang="en"><title>Player</title><link rel="stylesheet" href="look.css">
<main class="mv"><button class="mv-main">Before</button><div id="player"></div><p style="height: 3000px"></p></main>
<script type="module">
import player from "./player.js";
const [traits, sound] = await Promise.all([fetch("traits.json").then(r => r.json()),
                                           fetch("sound.flac").then(r => r.arrayBuffer())]);
Object.assign(traits, {sound: new DataView(sound), picture: new DataView(new ArrayBuffer(0))});
window.sent = [];
window.changes = 0;
const model = {get: name => traits[name], on() {}, off() {}, send: message => sent.push(message)};
player.render({model, el: document.querySelector("#player")});
new MutationObserver(records => window.changes += records.length).observe(
  document.querySelector(".mv-words"), {subtree: true, childList: true, attributes: true, characterData: true});
window.ready = true;
</script>"""

STATE = """
const box = document.querySelector('.mv-words'), marked = [...box.querySelectorAll('[aria-current]')];
const inView = e => e.offsetTop >= box.scrollTop && e.offsetTop + e.offsetHeight <= box.scrollTop + box.clientHeight;
return {time: document.querySelector('audio').currentTime, marked: marked.map(e => [...box.children].indexOf(e)),
        inView: marked.every(inView), buttons: box.querySelectorAll('[role=button], [tabindex]').length,
        scroll: box.scrollTop, page: scrollY}"""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def show(browser, tmp_path):
    "Return a function that shows a text in the player, its words evenly in some seconds of a soft noise."
    for name in ("player.js", "look.css"):
        shutil.copy(WEB/name, tmp_path)
    (tmp_path/"index.html").write_text(HTML, encoding="utf-8")
    handler = functools.partial(QuietHandler, directory=tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def show(text, seconds):
        noise, words = torch.rand(round(8000*seconds))/100, text.split()
        each = seconds/max(1, len(words))
        audio = Audio(noise, 8000, words=[Word(word, n*each, (n + .9)*each) for n, word in enumerate(words)])
        player = Player()
        player.show(audio, "A text", "in a test", text=text)
        names = ("peaks", "formats", "captions", "words", "heading", "about", "duration", "autoplay", "repeat_label")
        (tmp_path/"traits.json").write_text(json.dumps({name: getattr(player, name) for name in names}))
        (tmp_path/"sound.flac").write_bytes(player.sound)
        page = Page(browser, f"http://127.0.0.1:{server.server_port}/")
        page.driver.get("about:blank")
        until(lambda: page.js("return location.href") == "about:blank")
        page.driver.get(page.url)
        until(lambda: page.js("return window.ready && document.querySelector('audio').readyState > 0"), 60)
        return page

    yield show
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_the_text_is_shown_once_and_escaped(show):
    text = f"One two.\n\n{ODD}\nlast"
    page = show(text, 5)
    shown = page.js("return document.querySelector('.mv-words').textContent")
    assert shown == text and page.driver.title == "Player"
    assert page.js("return document.querySelectorAll('.mv-words :not(span)').length") == 0
    assert not page.find(".mv-player-title").is_displayed()  # the heading is the beginning of the text
    assert page.js("return !document.querySelector('.mv-words').closest('[aria-live], [role=status], [role=alert]')")
    assert page.js(STATE)["buttons"] == 1
    assert page.js("return [...document.querySelectorAll('optgroup option')].map(e => e.value)") == ["srt", "vtt"]
    page.js("document.querySelector('.mv-save select').value = 'vtt'")
    page.find(".mv-save button").click()
    assert page.js("return sent") == [dict(format="vtt")]


@pytest.mark.slow
def test_the_word_that_is_said_is_marked(show):
    page = show("one two three four five six", 3)
    assert page.js(STATE)["marked"] == [0]  # it begins at the position, 0
    page.find(".mv-play").click()
    seen = {}

    def follow():
        state = page.js(STATE)
        seen[tuple(state["marked"])] = state["time"]
        return page.js("return document.querySelector('audio').ended && !document.querySelector('[aria-current]')")

    until(follow, 30)
    assert {(1,), (2,), (3,)} <= {*seen} and all(len(marked) <= 1 for marked in seen)
    for marked, time in seen.items():
        if marked:
            assert marked[0]*.5 - .1 <= time <= marked[0]*.5 + .7, seen
    page.all(".mv-words span")[3].click()
    state = until(lambda: (state := page.js(STATE))["marked"] == [3] and state)
    assert state["time"] == pytest.approx(1.5, abs=.01) and page.js("return document.querySelector('audio').paused")


@pytest.mark.slow
def test_words_by_keyboard(show):
    page = show("one two three four five six", 3)
    page.js("document.querySelector('.mv-main').focus()")
    for _ in range(10):
        page.type_keys(TAB)
        if page.focused().tag_name == "span":
            break
    assert (page.focused().accessible_name, page.focused().aria_role) == ("one", "button")
    words = {RIGHT: ["two", "three"], LEFT: ["two"], END: ["six"], HOME: ["one"]}
    for key, word in [(key, word) for key, each in words.items() for word in each] + [(LEFT, "one"), (END, "six")]:
        page.type_keys(key)
        assert page.focused().text == word
    page.type_keys(RIGHT, LEFT, ENTER)
    until(lambda: page.js(STATE)["marked"] == [4])
    assert page.js(STATE)["time"] == pytest.approx(2, abs=.01) and page.js(STATE)["buttons"] == 1
    page.type_keys(HOME, " ")
    until(lambda: page.js(STATE)["marked"] == [0])
    page.type_keys(TAB)  # out of the words
    assert page.focused().tag_name != "span"


@pytest.mark.slow
def test_twenty_thousand_words(show):
    page = show(" ".join(f"word{n}" for n in range(20_000)), 100)
    seek = ("const a = document.querySelector('.mv-seen input'); a.value = arguments[0];"
            "a.dispatchEvent(new Event('input'))")
    for time, word in [(50, 10_000), (99.9, 19_980), (0, 0), (25.0025, 5000)]:
        page.js("window.changes = 0; " + seek, time)
        state = until(lambda: (state := page.js(STATE))["marked"] == [word] and state)
        assert state["inView"] and state["buttons"] == 1 and state["page"] == 0
        assert page.js("return window.changes") <= 12  # attributes of two words, and of two that Tab reaches
    page.find(".mv-play").click()
    until(lambda: page.js(STATE)["time"] > 26)
    state = page.js(STATE)
    assert state["inView"] and state["page"] == 0
    page.js("document.querySelector('.mv-words').scrollTop = 0")  # somebody reads elsewhere
    reached = page.js(STATE)["time"]
    until(lambda: page.js(STATE)["time"] > reached + .5)
    assert page.js(STATE)["scroll"] == 0


@pytest.mark.slow
def test_axe_finds_nothing_serious_in_a_text_that_scrolls(show, axe):
    page = show("I saw a dog. " * 100, 20)
    page.all(".mv-words span")[2].click()  # the word a, a small target
    until(lambda: page.js(STATE)["marked"] == [2])
    assert page.js("const box = document.querySelector('.mv-words'); return box.scrollHeight > box.clientHeight")
    assert_accessible(page, axe, "words")
