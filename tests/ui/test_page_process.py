"The processes of pages without a browser: they share a model, end when nobody looks, and leave nothing behind."
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

psutil = pytest.importorskip("psutil", reason="psutil isn't installed, which ipykernel needs")

from metavoice.ui import page_process, pages

ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")

FORK_SERVER = """
import os, socket, sys, time
from metavoice.ui.page_process import ForkServer

def run_page(request):
    what = request["arguments"][0]
    if what == "fail":
        raise ValueError("of the page")
    if what == "exit":
        sys.exit(3)
    if what == "wait":
        print(os.getpid(), flush=True)
        time.sleep(600)
    return 5

ForkServer(socket.socket(fileno=int(sys.argv[1])), run_page, idle_seconds=1).serve()
"""

UI_SERVER = """
import sys
import metavoice.ui.pages as pages

pages.IDLE_TIMEOUT, pages.IDLE_INTERVAL, pages.MODEL_TIMEOUT = 8, 1, 1
pages.serve_page(sys.argv[1], token="x", on_ready=lambda url: print(url, flush=True))
"""


def wait_for(condition, seconds=120):
    "Return the first true value of a condition."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("the condition did not hold")


@pytest.fixture
def fork_server(tmp_path):
    "Return a server that forks, and the address of its socket."
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path/"pages"))
        listener.listen()
        command = [sys.executable, "-c", FORK_SERVER, str(listener.fileno())]
        environment = os.environ | dict(PYTHONPATH=str(ROOT))
        server = subprocess.Popen(
            command, pass_fds=[listener.fileno()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment,
        )
        yield server, str(tmp_path/"pages")
        server.kill()
        server.communicate()


def connect(address, *arguments):
    "Send a request and return the connection."
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    request = dict(arguments=arguments, environment=dict(os.environ), folder="/")
    connection.sendall(json.dumps(request).encode() + b"\n")
    return connection


@LINUX
def test_exit_codes_and_broken_requests(fork_server):
    server, address = fork_server
    assert [page_process.request_page(address, [what]) for what in ("other", "exit", "fail")] == [5, 3, 1]
    for data in (b"nothing\n", b""):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            connection.sendall(data)
    assert page_process.request_page(address, ["other"]) == 5
    assert server.wait(60) == 0 and server.stderr.read().count("ValueError: of the page") == 1


@LINUX
def test_a_page_ends_with_its_command_and_with_its_server(fork_server):
    server, address = fork_server
    connection = connect(address, "wait")
    page = psutil.Process(int(server.stdout.readline()))
    connection.close()
    wait_for(lambda: not page.is_running())
    with connect(address, "wait"):
        other = psutil.Process(int(server.stdout.readline()))
        server.terminate()  # as from a person; copies end by ipykernel's look at their parent
        assert server.wait(60) == -signal.SIGTERM
        other.kill()


def test_the_times_add_up_to_less_than_a_minute():
    assert pages.IDLE_TIMEOUT + pages.IDLE_INTERVAL + pages.MODEL_TIMEOUT < 60
    config = pages.voila_config("127.0.0.1", 1, "x", "finetune")
    assert config["MappingKernelManager"]["cull_idle_timeout"] == pages.IDLE_TIMEOUT


def test_the_server_of_pages_does_without_torch():
    code = "import sys, metavoice.cli.ui, metavoice.ui.pages; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | dict(PYTHONPATH=str(ROOT))).returncode == 0


def children_of(process, name, recursive=False):
    "The living children with a word in their command."
    found = []
    for child in process.children(recursive):
        try:
            if name in child.cmdline():
                found.append(child)
        except psutil.Error:  # it has just ended
            continue
    return found


def private_memory(process):
    "The memory in MB that no other process shares."
    return process.memory_full_info().uss/2**20


@LINUX
@pytest.mark.slow
def test_pages_share_a_model_and_end_when_nobody_looks(tmp_path):
    pytest.importorskip("voila", reason="voila isn't installed, which metavoice[ui] needs")
    environment = os.environ | dict(PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1", METAVOICE_CACHE=str(tmp_path/"cache"))
    command = [sys.executable, "-c", UI_SERVER, "clone"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)
    try:
        url, whole = server.stdout.readline().strip(), psutil.Process(server.pid)
        for _ in range(2):
            html = urllib.request.urlopen(url, timeout=300).read().decode()
            assert "application/vnd.jupyter.widget-view+json" in html and "There was an error" not in html
        (model,) = children_of(whole, "serve")
        copies = children_of(model, "serve")
        assert len(copies) == 2 and all(private_memory(copy) < 150 for copy in copies), [*map(private_memory, copies)]
        wait_for(lambda: not whole.children())  # no browser is connected
        assert private_memory(whole) < 200
        urllib.request.urlopen(url, timeout=300).read()  # and again
        assert len(children_of(whole, "serve", recursive=True)) == 2
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]


LOCAL_SERVER = """
import metavoice.ui.pages as pages

pages.serve_page("clone", token="", on_ready=lambda url: print(url, flush=True))
"""


def test_a_page_answers_under_local_names_only(tmp_path):
    "Without a token too; a name of the internet with a local address is refused, also for the kernel's socket."
    environment = os.environ | dict(PYTHONPATH=str(ROOT), METAVOICE_CACHE=str(tmp_path))
    command = [sys.executable, "-c", LOCAL_SERVER]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True)
    try:
        url = process.stdout.readline().strip()
        for path in ("", "api/kernels", "api/kernels/00000000-0000-0000-0000-000000000000/channels"):
            request = urllib.request.Request(url + path, headers=dict(Host="evil.example"))
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=60)
            assert refused.value.code == 403, path
        request = urllib.request.Request(url + "login", headers=dict(Host="localhost:1"))
        with pytest.raises(urllib.error.HTTPError) as login:
            urllib.request.urlopen(request, timeout=60)
        assert login.value.code == 401
    finally:
        process.terminate()
        process.wait(60)
