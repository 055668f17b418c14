"Files in a folder and at addresses of fsspec."

import threading
from importlib.util import find_spec

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from metavoice.core.errors import OptionError
from metavoice.core.storage import LocalFolder, RemoteFolder, StorageError, hide_credentials, open_storage


@pytest.fixture(params=["folder", "file", "local", "dir", "memory"])
def place(request, tmp_path):
    "The same operations work on all of these."
    kinds = dict(folder=tmp_path / "a b", file=f"file://{tmp_path}/a b", local=f"local://{tmp_path}/a b")
    kinds |= dict(dir=f"dir::local://{tmp_path}/a b", memory=f"memory://{tmp_path.name}/a b")
    return kinds[request.param]


def test_files_are_written_listed_read_and_removed(place):
    one, other = open_storage(place), open_storage(place)
    assert one.list() == {} and one.facts("a.txt") is None
    one.remove("a.txt")
    one.prepare()
    one.write("a.txt", b"text")
    first = other.facts("a.txt")
    assert other.list() == {"a.txt": first} and first.size == 4
    assert other.read([first, first._replace(name="gone")], 4) == {"a.txt": b"text"}
    assert other.read([first], 3) == other.read([first._replace(size=None)], 3) == {}  # larger than 3 bytes
    other.write("a.txt", b"TEXT")
    assert one.facts("a.txt").stamp != first.stamp and one.read([first], 4) == {"a.txt": b"TEXT"}
    one.remove("a.txt")
    assert other.list() == {}


def test_local_files_are_private(tmp_path):
    storage = open_storage(f"file://{tmp_path}/deep/voices")
    assert isinstance(storage, LocalFolder)
    storage.write("a", b"text")
    modes = [path.stat().st_mode & 0o777 for path in (storage.path, storage.path / "a")]
    assert modes == [0o700, 0o600]


def test_a_write_that_fails_leaves_nothing(tmp_path):
    storage = open_storage(f"local://{tmp_path}/voices")
    storage.write("a.txt", b"text")

    class Full(type(storage._connect()[0])):
        protocol = "local"

        def mv(self, *args, **kwargs):
            raise OSError(28, "No space left on device")

    storage._connection = Full(), *storage._connection[1:]
    with pytest.raises(StorageError, match="No space left"):
        storage.write("a.txt", b"TEXT")
    assert [path.name for path in (tmp_path / "voices").iterdir()] == ["a.txt"]
    assert open_storage(f"local://{tmp_path}/voices").read(list(storage.list().values()), 9) == {"a.txt": b"text"}


def test_a_missing_driver_is_named_in_one_line():
    known = {"s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs"}
    missing = [name for name, package in known.items() if not find_spec(package)]
    assert missing, "a package that these tests don't need is installed"
    for protocol in missing:
        with pytest.raises(OptionError, match=known[protocol]) as caught:
            open_storage(f"{protocol}://key:secret@bucket/voices")
        assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("address, words", [
    ("nothing://voices", "fsspec doesn't know nothing://"),
    ("simplecache::memory://voices", "simplecache would hide"),
    ("dir::filecache::memory://voices", "filecache would hide"),
])
def test_addresses_that_cannot_be_used_are_refused(address, words):
    with pytest.raises(OptionError, match=words):
        open_storage(address)


@pytest.mark.parametrize("address, shown", [
    ("sftp://me:secret@host/voices", "sftp://…@host/voices"),
    ("sftp://me:se@cret@host/a@b", "sftp://…@host/a@b"),
    ("sftp://me:sec/ret@host/voices", "sftp://…@host/voices"),
    ("dir::sftp://me:secret@host/voices", "dir::sftp://…@host/voices"),
    ("abfs://box/voices?sig=secret", "abfs://box/voices?…"),
    ("s3://bucket/a@b", "s3://bucket/a@b"),
    ("/home/me@work/voices", "/home/me@work/voices"),
])
def test_credentials_are_hidden(address, shown):
    assert hide_credentials(address) == shown


def test_a_broken_connection_is_opened_again():
    class Flaky(MemoryFileSystem):
        protocol, opened = "flaky", []

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.opened.append(threading.get_ident())

        def ls(self, *args, **kwargs):
            if len(self.opened) == 1:
                raise ConnectionResetError(104, "key:secret")
            return super().ls(*args, **kwargs)

    fsspec.register_implementation("flaky", Flaky, clobber=True)
    storage = open_storage("flaky://me:secret@host/voices", "voices")
    assert isinstance(storage, RemoteFolder)
    with pytest.raises(StorageError, match="flaky://…@host/voices: ConnectionResetError") as caught:
        storage.list()
    assert "secret" not in str(caught.value)
    assert storage.list() == {} and len(Flaky.opened) == 2
