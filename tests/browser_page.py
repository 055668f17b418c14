"The page of `metavoice ui` in a browser, as a person uses it."
from helpers import until

PLAYER = ".mv-column:nth-child(2) .mv-player"  # of the generated speech


class Page:
    "The actions and observations of a person."

    def __init__(self, driver, url):
        self.driver, self.url = driver, url

    def open(self, awaited=".mv-main"):
        "Load the page, and wait until the awaited element is there."
        self.driver.get("about:blank")
        # The driver doesn't wait for a page, so the second request would overtake the first.
        until(lambda: self.js("return location.href") == "about:blank")
        self.driver.get(self.url)
        until(lambda: self.find(awaited))
        until(lambda: self.find(".mv-main").is_displayed())
        return self

    def find(self, selector):
        return self.driver.find_element("css selector", f".mv {selector}")

    def all(self, selector):
        return self.driver.find_elements("css selector", f".mv {selector}")

    def shown(self, selector):
        return [each for each in self.all(selector) if each.is_displayed()]

    def js(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def button(self, label):
        return next((b for b in self.all("button") if b.text.strip() == label), None)

    def press(self, label):
        "Press a button when it is enabled."
        until(lambda: (button := self.button(label)) and button.is_enabled() and button).click()

    def voices(self):
        return [b.accessible_name for b in self.all(".mv-choose")]

    def choose_voice(self, name):
        next(b for b in self.all(".mv-choose") if b.accessible_name == name).click()

    def says(self, words):
        "Return whether a notice contains the words."
        return any(words in notice.text for notice in self.all(".mv-said"))

    def sound(self):
        "Return position, duration and error of the generated speech."
        return self.js(f"const a = document.querySelector('{PLAYER} audio');"
                       "return a && [a.currentTime, a.duration, a.error && a.error.message]")

    def write(self, text):
        "Type a text, and wait until the page has counted it."
        field = self.find("textarea")
        field.clear()
        field.send_keys(text)
        until(lambda: f"{len(text)} characters" in self.find(".mv-stack .mv-said").text)

    def speak(self):
        "Press the button, and wait for a sound that plays."
        self.js("window.before = [...document.querySelectorAll('audio')].pop()?.src")
        self.find(".mv-main").click()
        playing = (f"const a = document.querySelector('{PLAYER} audio');"
                   "return a && a.src && a.src != window.before && a.currentTime > 0")
        until(lambda: self.js(playing), 180)
        until(lambda: self.find(".mv-main").is_enabled())
        return until(lambda: self.sound()[0] > .3 and self.sound())

    def set_number(self, selector, value, n=0):
        "Type a number over the one in the n-th field."
        self.all(selector)[n].send_keys("\ue009a\ue000" + f"{value}\t")  # Ctrl-A first
        until(lambda: self.all(selector)[n].get_attribute("value") == str(value))

    def set_theme(self, dark):
        "Show the page in dark or in light mode."
        scheme = dict(name="prefers-color-scheme", value="dark" if dark else "light")
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(features=[scheme]))

    def set_width(self, width, height=900):
        "Show the page on a screen of this size in pixels, which is a phone below 500."
        metrics = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def type_keys(self, *keys):
        "Press keys, which go to the element with the focus."
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self):
        return self.driver.switch_to.active_element

    def tab_to(self, name, most=60):
        "Press Tab until the focus is on the element with an accessible name, in any case."
        for _ in range(most):
            self.type_keys("\ue004")
            if self.focused().accessible_name.strip().lower() == name.lower():
                return self.focused()
        raise AssertionError(f"{most} times Tab don't reach {name!r}")


RUN_AXE = """
const done = arguments[0];
requestAnimationFrame(async () => {  // the colours of another theme fade in
  await Promise.all(document.getAnimations().filter(a => a instanceof CSSTransition).map(a => a.finished));
  done(await axe.run(document, {resultTypes: ['violations']}));
});"""


def assert_accessible(page, axe, state):
    "Check the page as it is, in both themes and on both screens."
    if not page.js("return !!window.axe"):
        page.js(axe)
    for dark in (False, True):
        for width in (1280, 390):
            page.set_theme(dark)
            page.set_width(width)
            found = page.driver.execute_async_script(RUN_AXE)
            serious = [
                (violation["id"], node["html"][:200])
                for violation in found["violations"]
                if violation["impact"] in ("serious", "critical")
                for node in violation["nodes"]
            ]
            assert not serious, (state, dark, width, serious)
    page.set_theme(False)
    page.set_width(1280)
