"Voices in a folder and at an address that servers share."

import subprocess
import sys
from dataclasses import replace

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from metavoice.bundle.voice import Voice, parse_blend
from metavoice.bundle.voice_store import UnknownVoice, VoiceStore, VoiceTaken, user_voices
from metavoice.core.storage import StorageError


def some_voice(seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    return Voice(torch.nn.functional.normalize(torch.randn(256, generator=generator), dim=0), **more)


@pytest.fixture(params=["{0}/voices", "file://{0}/voices", "local://{0}/voices", "memory:/{0}/voices"])
def place(request, tmp_path):
    return request.param.format(tmp_path)


def test_stores_at_one_place_see_each_others_voices(place):
    one, two = VoiceStore(place), VoiceStore(place)
    one.make_folder()
    added = one.add("Ada", some_voice(warnings=("noisy",)))
    assert two.find("ada")[0] == added and two.list() == [added] and added.warnings == ("noisy",)
    assert (two.get(added.id).embedding == some_voice().embedding).all()
    with pytest.raises(VoiceTaken):
        two.add("ADA", some_voice(1))
    origin = replace(some_voice().origin, consent="I agreed.")
    assert two.add("Ada", some_voice(origin=origin)).origin.consent == "I agreed."
    assert one.find(added.id)[0].origin.consent == "I agreed."  # the file was replaced
    assert two.delete("ada").id == added.id
    assert one.list() == []
    for key in ("Ada", added.id, "../" + added.id, "*", "a" * 10**5):
        with pytest.raises(UnknownVoice):
            one.get(key)


def test_files_that_are_no_voices_are_ignored(place):
    store = VoiceStore(place)
    store.add("Ada", some_voice())
    for name, data in (
        ("voice_" + 24 * "0" + ".safetensors", b"no"), ("voice_" + 24 * "1" + ".safetensors", bytes(2 << 20)),
        ("voice_" + 24 * "2" + ".safetensors", b""), ("notes.txt", b"notes"),
    ):
        store.storage.write(name, data)
    assert [stored.name for stored in VoiceStore(place).list()] == ["Ada"]
    with pytest.raises(UnknownVoice):
        store.get("voice_" + 24 * "1")


def test_only_new_files_are_read():
    class Counted(MemoryFileSystem):
        protocol, reads = ("counted", "memory"), []

        def cat_file(self, path, *args, **kwargs):
            self.reads.append(path)
            return super().cat_file(path, *args, **kwargs)

    fsspec.register_implementation("counted", Counted, clobber=True)
    one, two = VoiceStore("counted://voices"), VoiceStore("counted://voices")
    for n in range(40):  # more than one read takes
        one.add(f"voice {n}", some_voice(n))
    Counted.reads.clear()
    assert len(two.list()) == 40 and len(Counted.reads) == 40
    assert len(two.list()) == 40 and two.get("voice 7").name == "voice 7" and len(Counted.reads) == 40
    one.add("another", some_voice(41))
    Counted.reads.clear()
    assert len(two.list()) == 41 and len(Counted.reads) == 1


SERVER = """
import sys, torch
from metavoice.bundle.voice import Voice
from metavoice.bundle.voice_store import VoiceStore
store = VoiceStore(sys.argv[1])
for line in sys.stdin:
    action, name = line.split()
    if action == 'add':
        store.add(name, Voice(torch.nn.functional.normalize(torch.rand(256), dim=0)))
    if action == 'delete':
        store.delete(name)
    print(*sorted(stored.name for stored in store.list()), flush=True)
"""


@pytest.mark.parametrize("protocol", ["file", "local"])
def test_two_processes_share_an_address(tmp_path, protocol):
    command = [sys.executable, "-c", SERVER, f"{protocol}://{tmp_path}/voices"]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as two:

        def tell(process, line):
            process.stdin.write(line + "\n")
            process.stdin.flush()
            return process.stdout.readline().split()

        try:
            assert tell(one, "add Ada") == tell(two, "list -") == ["Ada"]
            assert tell(two, "add Bob") == tell(one, "list -") == ["Ada", "Bob"]
            assert tell(one, "delete Ada") == tell(two, "list -") == ["Bob"]
        finally:
            one.stdin.close()
            two.stdin.close()


def test_an_unreachable_place_is_one_clear_error(tmp_path, monkeypatch):
    class Away(MemoryFileSystem):
        protocol = "away"

        def ls(self, *args, **kwargs):
            raise PermissionError(13, "the key AKIA0123 is wrong")

        exists = info = pipe_file = ls

    fsspec.register_implementation("away", Away, clobber=True)
    monkeypatch.setenv("METAVOICE_VOICES", "away://me:secret@host/voices")
    for call in (user_voices().list, user_voices().make_folder, lambda: user_voices().get("Ada")):
        with pytest.raises(StorageError) as caught:
            call()
        assert str(caught.value) == "can't list the voices at away://…@host/voices: access was denied"
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Not a directory"):
        VoiceStore(tmp_path / "file").list()


@pytest.mark.parametrize("text", ["a" + " " * 10**5 + "b", "a*" + " " * 10**5 + "(", "(" * 10**5, "*" * 10**5 + "("])
def test_the_text_of_a_blend_is_read_in_linear_time(text):
    assert parse_blend(text) is None  # a search that backtracks takes hours
