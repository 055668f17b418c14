"Functions that tests of several rooms share."
import time
from contextlib import contextmanager

import pytest


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


def slowness():
    "Return by how much a core is slower now than the one on which bounds on CPU time were set, at least 1."
    fastest = min(timed_loop() for _ in range(3))
    return max(1.0, fastest / 0.02)


def timed_loop():
    "Return the CPU seconds of a loop that takes 0.02 s on that core."
    start, total = time.thread_time(), 0
    for n in range(500_000):
        total += n
    return time.thread_time() - start


def assert_linear(work, text):
    """Check that work on a text takes at most a second of CPU time, or less than ten times as long as on a
    quarter of the text. Return the result of the work."""
    for _ in range(3):  # on a busy machine, CPU time varies
        result, seconds = timed(work, text)
        if seconds <= 1:
            return result
        quarter = timed(work, text[: len(text) // 4])[1]
        if seconds < 10 * quarter:
            return result
    raise AssertionError(f"{seconds:.1f} s, {quarter:.1f} s for a quarter of {text[:60]!r}; 16 times is quadratic")


def timed(work, text):
    "Return the result of work on a text and the CPU seconds that it took in this thread."
    start = time.thread_time()
    result = work(text)
    return result, time.thread_time() - start


def assert_near(got, expected, tolerance=1e-4):
    "Compare two tensors; the tolerance is relative to the standard deviation of the second."
    assert got.shape == expected.shape
    error = (got - expected).abs().max() / expected.std()
    assert error <= tolerance, f"the error is {error:.2e} of the standard deviation; at most {tolerance:.0e} is allowed"


@contextmanager
def raises_one_line(error_type, *words):
    "Expect an error whose message is one line that contains all words."
    with pytest.raises(error_type) as error:
        yield
    text = str(error.value)
    assert text.strip() and "\n" not in text
    for word in words:
        assert word in text, text


def split_pairs(text):
    "Return the lines of a table, each split at its bars: written|said."
    return [line.split("|") for line in text.strip().split("\n")]
