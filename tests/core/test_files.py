"Files: written whole or not at all, keys of content, and downloads that fail with a reason."

import os
from pathlib import Path

import pytest

from metavoice.core.errors import BundleError, MetaVoiceError, OutputError
from metavoice.core.files import atomic_write, cache_dir, content_key, download


def test_atomic_write_replaces_a_file(tmp_path):
    path = tmp_path / "a.txt"
    for content in ("old", "new"):
        with atomic_write(path) as temporary:
            assert temporary.parent == tmp_path and temporary.suffix == ".txt" and temporary != path
            temporary.write_text(content)
        assert path.read_text() == content
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_atomic_write_leaves_nothing_after_an_error(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error):
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise error
    assert (tmp_path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_atomic_write_keeps_to_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name, message", [("no/a.txt", "No such file"), ("folder", "it is a directory")])
def test_atomic_write_refuses(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=message) as e:
        with atomic_write(tmp_path / name):
            pass
    assert name in str(e.value) and isinstance(e.value, (OSError, MetaVoiceError))
    assert os.listdir(tmp_path) == ["folder"]


def test_content_key_changes_with_any_part():
    keys = [content_key(*parts) for parts in (("ab", "c"), ("a", "bc"), ("abc",), ("", "abc"), ("abc", ""), ())]
    assert len(set(keys)) == len(keys) and all(len(key) == 32 for key in keys)
    assert content_key("é") == content_key("é".encode())


def test_cache_dir_is_not_created(tmp_path, monkeypatch):
    monkeypatch.setenv("METAVOICE_CACHE", str(tmp_path / "cache"))
    assert cache_dir() == tmp_path / "cache" and not (tmp_path / "cache").exists()
    monkeypatch.delenv("METAVOICE_CACHE")
    assert cache_dir().name == "metavoice" and isinstance(cache_dir(), Path)


def test_download_names_the_files_and_the_way_out(monkeypatch):
    import huggingface_hub

    def offline(*args, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(
        BundleError, match="a.pt, b.pt of me/voice at revision 0123456789ab .ConnectionError.; go online"
    ):
        download("me/voice", ["a.pt", "b.pt"], "0123456789abcdef")


def test_download_returns_the_folder(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo, name, revision: str(tmp_path / revision / name)
    )
    assert download("me/voice", ["a.pt", "b.pt"], "abc") == tmp_path / "abc"
