"Both pages by axe-core, by keyboard, by what a screen reader gets, and on a narrow screen."
import pytest
from browser_page import PLAYER, Page, assert_accessible
from helpers import until

pytest.importorskip("anywidget", reason="anywidget isn't installed, which metavoice[ui] needs")

ENTER, RIGHT, HOME = "\ue007", "\ue014", "\ue011"


@pytest.fixture(scope="module")
def page(ui, browser):
    "Return the clone page."
    return Page(browser, ui()[1])


@pytest.fixture(scope="module")
def finetuning(ui, browser, tmp_path_factory):
    "Return the finetuning page."
    return Page(browser, ui("finetune", cwd=tmp_path_factory.mktemp("finetuning"))[1])


@pytest.mark.slow
def test_axe_finds_nothing_serious_on_the_clone_page(page, axe, tmp_path):
    page.open()
    page.press("SETTINGS")
    until(lambda: page.find(".widget-readout").is_displayed())
    assert_accessible(page, axe, "settings")
    page.speak()
    page.write("The old man walked to the river.")
    page.speak()
    page.press("Another take")
    until(lambda: len(page.all(".mv-past button")) == 3, 180)
    until(lambda: page.button("Another take").is_enabled() and page.all(".mv-words [aria-current]"))
    page.js("document.querySelectorAll('audio').forEach(e => e.pause())")
    page.choose_voice("+ your own")
    (tmp_path/"odd.mp3").write_bytes(b"nothing of the kind")
    page.find("input[type=file]").send_keys(str(tmp_path/"odd.mp3"))
    until(lambda: page.shown(".mv-bad"), 60)
    assert_accessible(page, axe, "error, speech and history")


@pytest.mark.slow
def test_axe_finds_nothing_serious_on_the_finetuning_page(finetuning, axe, recordings, tmp_path):
    page = finetuning.open()
    page.press("MORE")
    until(lambda: page.find(".mv-inner textarea").is_displayed())
    for name, data, _ in recordings[:4]:
        (tmp_path/name).write_bytes(data)
    (tmp_path/"texts.csv").write_text("audio_files|captions\n0.flac|The dog slept.\n9.flac|\n")
    page.find("input[type=file]").send_keys("\n".join(str(path) for path in tmp_path.iterdir()))
    until(lambda: "4 recordings, with the texts in texts.csv" in page.find(".mv-good").text)
    page.press("Check the recordings")
    until(lambda: page.all(".mv-report table") and page.all(".mv-reveal"))
    assert_accessible(page, axe, "recordings and report")


@pytest.mark.slow
def test_names_and_states_for_a_screen_reader(page):
    page.open()
    page.press("SETTINGS")
    until(lambda: page.find(".widget-readout").is_displayed())
    until(lambda: all(slider.accessible_name for slider in page.all("[role=slider]")))
    sliders = [slider.accessible_name for slider in page.all("[role=slider]")]
    assert sliders == ["Guidance", "Text guidance", "Top p", "Temperature", "Takes", "Speed"]
    all_fields = page.all("textarea, select, input[type=number], input[type=checkbox]")
    fields = {field.accessible_name for field in all_fields if field.is_displayed()}
    assert {"Text to speak", "Accent", "Top k", "Seed", "Denoiser: on", "Seed: a new one each time"} <= fields
    assert "" not in fields
    accent = next(field for field in page.all("select") if field.accessible_name == "Accent")
    assert page.js("return arguments[0].selectedOptions[0].text", accent).replace("\xa0", " ") == "The voice's own"
    headings = [title.text.lower() for title in page.all("h1, h2, [role=heading]") if title.is_displayed()]
    assert headings == ["metavoice", "text", "voice", "settings", "speech"]

    def pressed():
        return {b.accessible_name: b.get_attribute("aria-pressed") for b in page.all(".mv-choose")}

    assert pressed()["af_heart"] == "true" and pressed()["bf_emma"] == "false"
    (group,) = page.all(".mv-gallery[role=group]")
    assert group.accessible_name == "Voice"
    about = page.js("return [...document.querySelectorAll('.mv-choose')].map(e => "
                    "document.getElementById(e.getAttribute('aria-describedby')).textContent)")
    assert about[0] == "American" and about[4] == "British" and len(about) == 7
    names = [button.accessible_name for button in page.all(".mv-listen")]
    assert names[0] == "Play a sample of af_heart" and len(names) == 6
    page.choose_voice("bf_emma")
    until(lambda: pressed()["bf_emma"] == "true" and pressed()["af_heart"] == "false")


@pytest.mark.slow
def test_the_clone_page_by_keyboard(page):
    page.open()
    page.find("textarea").click()
    play = page.tab_to("Play a sample of am_michael")
    page.type_keys(" ")
    until(lambda: play.accessible_name == "Pause the sample of am_michael")
    page.type_keys(ENTER)
    until(lambda: play.accessible_name == "Play a sample of am_michael")
    page.tab_to("am_fenrir")
    page.type_keys(" ")
    until(lambda: page.find(".mv-choose[aria-pressed=true]").accessible_name == "am_fenrir")
    settings = page.tab_to("Settings")
    page.type_keys(ENTER)
    until(lambda: settings.get_attribute("aria-expanded") == "true" and page.find(".widget-readout").is_displayed())
    slider = page.tab_to("Takes")
    before = float(slider.get_attribute("aria-valuenow"))
    page.type_keys(RIGHT)
    until(lambda: float(slider.get_attribute("aria-valuenow")) == before + 1)
    page.tab_to("Speak")
    page.type_keys(ENTER)
    until(lambda: "am_fenrir" in page.driver.find_element("css selector", f"{PLAYER} .mv-player-about").text)
    until(lambda: page.find(".mv-main").is_enabled())
    settings.send_keys(" ")
    until(lambda: settings.get_attribute("aria-expanded") == "false" and not page.find(".mv-content").is_displayed())


@pytest.mark.slow
def test_another_take_and_words_by_keyboard(page):
    page.open()
    page.write("I saw a dog.")
    page.speak()
    page.tab_to("Another take")
    page.type_keys(ENTER)
    until(lambda: len(page.all(".mv-past button")) == 2 and page.button("Another take").is_enabled(), 180)
    until(lambda: page.js(f"return document.querySelector('{PLAYER} audio').ended"))
    (box,) = [box for box in page.all(".mv-words") if box.is_displayed()]
    assert (box.text, box.aria_role) == ("I saw a dog.", "group") and "arrow keys" in box.accessible_name
    assert page.js("return !arguments[0].closest('[aria-live], [role=status], [role=alert], [role=log]')", box)
    (button,) = box.find_elements("css selector", "[role=button], [tabindex]")
    page.tab_to(button.text)
    page.type_keys(HOME, RIGHT, RIGHT, ENTER)
    assert page.focused().text == "a"
    until(lambda: [e.text for e in box.find_elements("css selector", "[aria-current]")] == ["a"])
    assert 0 < page.sound()[0] < page.sound()[1]


@pytest.mark.slow
def test_the_finetuning_page_by_keyboard(finetuning, recordings, tmp_path):
    page = finetuning.open()
    for name, data, _ in recordings[:3]:
        (tmp_path/name).write_bytes(data)
    (tmp_path/"texts.csv").write_text("audio_files|captions\n0.flac|The dog slept.\n")
    page.find("input[type=file]").send_keys("\n".join(str(path) for path in tmp_path.iterdir()))
    until(lambda: "3 recordings, with the texts in texts.csv" in page.find(".mv-good").text)
    page.find(".widget-toggle-button").click()
    page.tab_to("remove texts.csv")
    page.type_keys(ENTER)
    until(lambda: page.find(".mv-good").text == "3 recordings")
    # the focus is on the row that took the place of the removed one
    first = until(lambda: (label := page.focused().accessible_name).startswith("remove") and label)
    page.type_keys(ENTER)
    until(lambda: page.find(".mv-good").text == "2 recordings")
    until(lambda: page.focused().accessible_name.startswith("remove") and page.focused().accessible_name != first)
    more = page.tab_to("More")
    page.type_keys(" ")
    until(lambda: more.get_attribute("aria-expanded") == "true" and page.find(".mv-inner textarea").is_displayed())
    assert page.tab_to("Batch size").is_displayed()


IN_VIEW = """
const r = arguments[0].getBoundingClientRect();
return r.height > 0 && r.top >= -1 && r.bottom <= innerHeight + 1"""


@pytest.mark.slow
def test_a_page_whose_process_has_ended_says_so(page):
    page.open()
    ended = "return !document.getElementById('mv-ended').hidden"
    page.js("lookForProcess()")
    assert not page.js(ended)
    page.driver.execute_async_script(
        "const done = arguments[0], config = document.getElementById('jupyter-config-data').textContent;"
        "const {kernelId} = JSON.parse(config);"
        "fetch(`/voila/api/shutdown/${kernelId}`, {method: 'POST', headers: {'X-XSRFToken': "
        "document.cookie.match(/_xsrf=([^;]*)/)[1]}}).then(done)"
    )
    until(lambda: page.js("lookForProcess()") or page.js(ended))


@pytest.mark.slow
def test_a_result_is_brought_into_view_on_a_narrow_screen(page):
    page.open()
    page.set_width(390, 700)
    try:
        page.press("Speak")
        find = page.driver.find_element
        until(lambda: page.js(IN_VIEW, find("css selector", PLAYER)), 120)
        until(lambda: page.find(".mv-main").is_enabled())
        page.find("textarea").clear()
        until(lambda: "Any length" in page.find(".mv-said").text)
        page.js("arguments[0].click()", page.find(".mv-main"))  # a press that doesn't scroll
        until(lambda: page.js(IN_VIEW, page.find(".mv-reveal[role=alert]")), 120)
        page.find("textarea").send_keys("The dog slept.")
        until(lambda: not page.all(".mv-reveal"))
    finally:
        page.set_width(1280)
