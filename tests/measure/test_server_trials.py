"Trials of a server: an unreachable server, percentiles, and the memory of a process with children."

import math
import subprocess
import sys
import time

import pytest

pytest.importorskip("httpx", reason='needs pip install "metavoice[serve]"')
from metavoice.measure.server_trials import load_test, percentile, resident_memory  # noqa: E402

CHILD = "x = bytearray(100_000_000); input()"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}], stdin=sys.stdin)"


def test_percentiles_and_an_unreachable_server():
    assert math.isnan(percentile([], 0.5))
    assert percentile([3, 1, 2], 0.99) == 3
    found = load_test("http://127.0.0.1:9", 2, 4)
    assert found["sentences"] == 0
    assert found["failed"] == {"ConnectError": 4}
    assert math.isnan(found["p99"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_children_counts():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE) as process:
        end = time.monotonic() + 60
        while resident_memory(process.pid) < 100 and time.monotonic() < end:
            time.sleep(0.02)
        assert resident_memory(process.pid) > 100
        process.stdin.close()
