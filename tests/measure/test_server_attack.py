"The attack on a server: what its parts report, and the command."
import json

import pytest
from helpers import until

pytest.importorskip("fastapi", reason="fastapi isn't installed, which metavoice[serve] needs")

from metavoice.cli import main
from metavoice.measure import server_faults
from metavoice.measure.server_attack import Observers, make_heavy_recording, make_hostile_texts


def test_hostile_texts_are_repeatable_and_as_long_as_allowed():
    texts = make_hostile_texts(50, seed=3)
    assert {len(text) for text in texts} == {4096} and texts == make_hostile_texts(50, seed=3)


def test_the_recording_is_small_as_a_file_and_large_as_samples():
    assert len(make_heavy_recording(2.0)) < 0.1 * 2 * 192_000 * 8 * 2


def test_a_server_that_does_not_answer_loses_requests():
    observers = Observers("http://127.0.0.1:9", callers=1)
    report = observers.report(observers.watch(lambda: until(lambda: observers.lost)))
    assert report["lost"] > 0 and any("Connect" in reason for reason in report["reasons"])


def test_the_command_prints_the_figures_and_writes_them(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(server_faults, "try_faults", lambda minutes: dict(minutes=minutes, attack=dict(lost=0)))
    path = tmp_path/"attack.json"
    assert main(["benchmark", "--attack", "--json", str(path)]) == 0
    printed, found = json.loads(capsys.readouterr().out), json.loads(path.read_text())
    assert printed == found and found["generator"].startswith("made by metavoice")
    assert found == dict(generator=found["generator"], minutes=5.0, attack=dict(lost=0))
    assert main(["benchmark", "--attack", "0"]) == 2


def test_observers_stop_when_what_they_watch_fails():
    observers = Observers("http://127.0.0.1:9", callers=1)
    with pytest.raises(ZeroDivisionError):
        observers.watch(lambda: 1 / 0)
    assert not observers.running.is_set()
