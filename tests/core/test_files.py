"Files: written whole or not at all, keys of content, and downloads that fail with a reason."

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from metavoice.core.errors import BundleError, MetaVoiceError, OutputError
from metavoice.core.files import atomic_write, cache_dir, content_key, download, is_standard_output, is_stream

ROOT = Path(__file__).parents[2]


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


posix = pytest.mark.skipif(os.name != "posix", reason="symlinks, pipes and descriptors of POSIX")


def write(path, content):
    with atomic_write(path) as temporary:
        temporary.write_text(content)


@posix
def test_a_symlink_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.txt").write_text("old")
    for link, target in (("a.txt", "store/a.txt"), ("new.txt", "store/new.txt"), ("two.txt", "a.txt")):
        (tmp_path / link).symlink_to(target)
        write(tmp_path / link, f"through {link}")
        assert (tmp_path / link).is_symlink() and (tmp_path / link).read_text() == f"through {link}"
    assert sorted(os.listdir(tmp_path / "store")) == ["a.txt", "new.txt"]
    assert (tmp_path / "store" / "a.txt").read_text() == "through two.txt"


@posix
def test_links_that_lead_nowhere(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "lost").symlink_to("no/folder")
    (tmp_path / "here").symlink_to(".")
    for name, words in (("a", "circle"), ("lost", "No such file"), ("here", "directory")):
        with pytest.raises(OutputError, match=words):
            write(tmp_path / name, "x")
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "here", "lost"]


@posix
def test_a_named_pipe_is_written_to(tmp_path):
    pipe, got, content = tmp_path / "pipe", [], "long " * 100_000
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write(pipe, content)
    reader.join(60)
    assert got == [content] and pipe.is_fifo() and os.listdir(tmp_path) == ["pipe"]


@posix
def test_a_device_is_written_to(tmp_path):
    before = os.stat("/dev/null")
    (tmp_path / "null").symlink_to("/dev/null")
    for path in ("/dev/null", tmp_path / "null"):
        write(path, "x")
    assert os.path.samestat(before, os.stat("/dev/null")) and (tmp_path / "null").is_symlink()
    if Path("/dev/full").exists():
        with pytest.raises(OutputError, match="can't write /dev/full: No space left"):
            write("/dev/full", "x")


STANDARD_OUTPUT = """
from metavoice.core.files import atomic_write, is_standard_output
print('before')
with atomic_write('/dev/stdout') as temporary:
    temporary.write_text('content\\n')
print('after', is_standard_output('/dev/stdout'))
"""


@posix
@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_standard_output_is_written_to_where_it_stands(tmp_path, mode):
    (tmp_path / "a.txt").write_text("earlier\n")
    with open(tmp_path / "a.txt", mode) as out:
        subprocess.run([sys.executable, "-c", STANDARD_OUTPUT], stdout=out, check=True, cwd=ROOT)
    written = "before\ncontent\nafter True\n"
    assert (tmp_path / "a.txt").read_text() == (written if mode == "wb" else "earlier\n" + written)
    options = dict(stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    assert subprocess.run([sys.executable, "-c", STANDARD_OUTPUT], **options).stdout == written
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_is_a_stream(tmp_path):
    (tmp_path / "a.txt").touch()
    assert not any(map(is_stream, (tmp_path, tmp_path / "a.txt", tmp_path / "no", "a\0b", "x" * 300)))
    assert not any(map(is_standard_output, (None, tmp_path, "nowhere")))


@posix
def test_a_replaced_file_keeps_its_permissions(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "a.txt").chmod(0o600)
    write(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o600


def test_long_names(tmp_path):
    for name in ("a" * 250 + ".txt", "é" * 125 + ".txt"):
        write(tmp_path / name, "x")
    assert len(os.listdir(tmp_path)) == 2
