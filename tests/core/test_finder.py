"Files found with and without their endings, in subfolders, under composed and decomposed names."
from pathlib import Path

import pytest

from metavoice.core.finder import FileFinder, is_file, list_files


@pytest.fixture
def find(tmp_path):
    for name in ("1.wav", "wavs/2.wav", "wavs/2.flac", "wavs/Zoe\u0308.ogg", "wavs/5.6.MP3", "wavs/._2.wav", "7.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return FileFinder(tmp_path, ("", "wavs"), (".wav", ".flac", ".ogg", ".mp3"))


def test_names(find, tmp_path, monkeypatch):
    names = {
        "1": "1.wav", "1.wav": "1.wav", "2": "wavs/2.wav", "wavs/2": "wavs/2.wav", "2.flac": "wavs/2.flac",
        "5.6": "wavs/5.6.MP3", r"wavs\2.flac": "wavs/2.flac", "./1": "1.wav", "7.txt": "7.txt",
    }
    for name, expected in names.items():
        assert find(name) == tmp_path / expected, name
    assert find("Zoë").is_file() and find(str(tmp_path / "1")) == tmp_path / "1.wav"
    monkeypatch.chdir(tmp_path / "wavs")
    assert FileFinder(Path("/"))("2.wav").is_file()


@pytest.mark.parametrize("name", ["", ".", "..", "/", "7", "5", "~nobody/1", "x\0", "\ud800", "x" * 300, "a/" * 5000])
def test_names_without_a_file(find, name):
    assert find(name) is None and not is_file(Path(name))


def test_list(find, tmp_path):
    names = [str(path.relative_to(tmp_path)) for path in list_files(tmp_path, (".wav", ".mp3"))]
    assert names == ["1.wav", "wavs/2.wav", "wavs/5.6.MP3"]
    assert [path.name for path in list_files(tmp_path, (".wav",), recursive=False)] == ["1.wav"]
    assert list_files(tmp_path / "none", (".wav",)) == []
