"Folders of recordings with a manifest, and files of sentences."
import pytest
import torch

from metavoice.audio.sound import Audio
from metavoice.core.errors import AudioError, OutputError, TextError
from metavoice.measure.recognise import normalise_words
from metavoice.measure.recordings import (
    EVALUATION_TEXTS,
    REFERENCE_TEXTS,
    SHORT_TEXTS,
    check_texts,
    read_manifest,
    read_recordings,
    read_texts,
    select_recordings,
    write_recordings,
    write_recordings_manifest,
)

TEXTS = ["The dog slept.", "Where is the red book?"]


@pytest.fixture
def folder(tmp_path):
    "Recordings of two texts by rms: two seconds of noise each."
    noise = torch.randn(2, 32000, generator=torch.Generator().manual_seed(0)).mul(.1)
    return write_recordings(tmp_path / "teacher", (("rms", t, Audio(o, 16000)) for t, o in zip(TEXTS, noise)))


def test_recordings_round_trip(folder):
    found = read_recordings(folder)
    assert [(voice, text) for (voice, _), (text, _) in found.items()] == [("rms", text) for text in TEXTS]
    selected = select_recordings(found, ["rms"], ["the dog slept"])
    assert selected["rms", "the dog slept"].duration == pytest.approx(2)
    assert sorted(p.suffix for p in folder.iterdir()) == [".csv", ".wav", ".wav"]


def test_missing_recordings(folder):
    message = "lacks 3 of 4 recordings, the first being 'Hello.' by"
    with pytest.raises(AudioError, match=message):
        select_recordings(read_recordings(folder), ["rms", "nobody"], [TEXTS[0], "Hello."])


def test_folder_must_be_new(folder, tmp_path):
    with pytest.raises(OutputError, match="it is there already"):
        write_recordings(folder, [])
    with pytest.raises(OutputError, match="there is no folder"):
        write_recordings(tmp_path / "no" / "folder", [])


def test_wrong_manifests(folder, tmp_path):
    manifest = folder / "manifest.csv"
    with pytest.raises(AudioError, match="manifest.csv: No such file"):
        read_recordings(tmp_path)
    lines = manifest.read_text().splitlines()
    for text, message in [
        ("voice,text,file\n", "names no recordings"),
        ("voice,text\na,b\n", "line 2 has no file"),
        ("\n".join([*lines, lines[1]]), "line 4 is a second recording"),
        ("voice,text,file\na,b,gone.wav\n", "gone.wav: there is no such file"),
    ]:
        manifest.write_text(text)
        with pytest.raises(AudioError, match=message):
            read_recordings(folder)
    manifest.write_bytes(b"voice,text,file\na,\xff,b.wav\n")
    with pytest.raises(AudioError, match="can't read"):
        read_recordings(folder)


def test_interrupted_write_leaves_nothing(tmp_path):
    def broken():
        yield "a", "b", Audio(torch.ones(9), 16000)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_recordings(tmp_path / "new", broken())
    assert not list(tmp_path.iterdir())


def test_texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\ufeffOne dog.\r\n\r\n  Two dogs. \n", encoding="utf-8")
    assert read_texts(path) == ["One dog.", "Two dogs."]


def test_built_in_texts():
    own = [*EVALUATION_TEXTS, *SHORT_TEXTS, *REFERENCE_TEXTS]
    assert check_texts(own) == own and (len(EVALUATION_TEXTS), len(SHORT_TEXTS)) == (40, 50)
    assert all(4 <= len(normalise_words(text).split()) <= 16 for text in EVALUATION_TEXTS)
    assert all(1 <= len(normalise_words(text).split()) <= 3 for text in SHORT_TEXTS)


@pytest.mark.parametrize("content, message", [
    (b"", "is empty"),
    (b"?!\n", "text 1 of .* has no words"),
    (b"A dog.\na dog\n", "texts 1 and 2 of .* are the same"),
    (b"Sch\xf6n\n", "isn't UTF-8"),
])
def test_wrong_texts(tmp_path, content, message):
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    with pytest.raises(TextError, match=message):
        read_texts(path)


def test_missing_texts(tmp_path):
    with pytest.raises(TextError, match="No such file"):
        read_texts(tmp_path / "gone.txt")


def test_manifests_of_strangers(tmp_path):
    manifest, head = tmp_path / "manifest.csv", "voice,text,file\n"
    for table, words in [
        ('a,"The dog slept.,x.wav\nb,The cat ran.,y.wav\n', 'line 2: the quote " that begins a cell isn\'t closed'),
        ("a,Yes, no.,x.wav\n", "line 2: it has more cells than the first line has names"),
        ("\0" * 2000, "it isn't a text file"),
        ('a,b,"x\0.wav"\n', "null byte"),
    ]:
        manifest.write_text(head + table)
        with pytest.raises(AudioError) as e:
            read_recordings(tmp_path)
        assert words in str(e.value) and "\n" not in str(e.value)
    manifest.write_text('"voice,text\n')
    with pytest.raises(AudioError, match="line 1: the quote"):
        read_recordings(tmp_path)


def test_a_manifest_reads_what_it_wrote(tmp_path):
    texts = ["word " * 60_000, 'He said\n"yes", then', " \u2028\x85 ", '"', ",", "=1"]
    entries = [dict(voice="caf\udce9", text=text, file="x.wav") for text in texts]
    write_recordings_manifest(tmp_path, entries)
    found = read_manifest(tmp_path / "manifest.csv")
    assert [entry["text"] for entry in found] == texts and {entry["voice"] for entry in found} == {"caf\\udce9"}
