"Functions that tests of several rooms share."
import time


def until(condition, seconds=600):
    "Return the first true value of a condition; an element of a page that is being replaced counts as not yet."
    from selenium.common.exceptions import WebDriverException

    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            found = condition()
        except WebDriverException as e:
            last, found = e, None
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"the condition did not hold within {seconds} s" + (f": {last.msg}" if last else ""))
