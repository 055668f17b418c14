"Names, folders and repositories of the Hugging Face Hub that `find_bundle` accepts, and which files are fetched."
import huggingface_hub
import pytest
from helpers import raises_one_line
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

import metavoice.bundle.hub
from metavoice.audio.sound import load_audio
from metavoice.bundle.hub import BundleLocation, find_bundle, make_preset_manifest
from metavoice.bundle.load import load_bundle
from metavoice.bundle.released import (
    ENCODEC_REPO,
    MBD_REPO,
    PINNED_REVISIONS,
    RELEASED_REPO,
)
from metavoice.core.errors import BundleError, OptionError


def test_names_and_folders(tmp_path, release, tiny_bundle):
    assert find_bundle(RELEASED_REPO) == (
        make_preset_manifest(RELEASED_REPO),
        BundleLocation(repo=RELEASED_REPO, revision=PINNED_REVISIONS[RELEASED_REPO]),
    )
    assert find_bundle(RELEASED_REPO, "a" * 40)[1].revision == "a" * 40
    assert load_bundle(release, "cpu").name == "release"
    for source, revision, words in (
        ("somebody/else", None, ("revision", RELEASED_REPO)),
        ("/absent/folder", None, ("there is no model",)),
        (str(tmp_path), None, ("neither bundle.json nor first_stage.pt",)),
        (str(tiny_bundle / "bundle.json"), None, ("is a file",)),
        (str(tiny_bundle), "a" * 40, ("is a folder",)),
        ("", None, ("neither bundle.json",)),
        ("nano 2", None, ("'nano 2'",)),
    ):
        with raises_one_line(BundleError, *words):
            load_bundle(source, "cpu", revision=revision)
    with pytest.raises(OptionError, match="abacus"):
        load_bundle(tiny_bundle, "abacus")
    with pytest.raises(OptionError, match="int3"):
        load_bundle(tiny_bundle, "cpu", "int3")


def test_the_release_offers_the_voices_of_nano(release):
    nano, bundle = load_bundle("nano", "cpu"), load_bundle(release, "cpu")
    assert bundle.voices == nano.voices and list(bundle.info()["voices"]) == list(nano.voices)
    assert all(load_audio(path).duration >= bundle.minimum_reference for path in bundle.voices.values())


def test_offline(monkeypatch, tmp_path):
    "Without a network the release can be described; a part that is not in the cache raises an error."
    def offline(repo, name, revision):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(BundleLocation, "local_path", lambda self, name: None)
    bundle = load_bundle(RELEASED_REPO, "cpu")
    assert {part["bytes"] for part in bundle.info()["parts"].values()} == {None}
    for part in ("tokeniser", "first", "second", "codec", "speaker_encoder", "mbd"):
        repo = {"codec": ENCODEC_REPO, "mbd": MBD_REPO}.get(part, RELEASED_REPO)
        with raises_one_line(BundleError, "go online once", repo):
            getattr(bundle, part)
    with raises_one_line(BundleError, "bundle.json", "go online once"):
        load_bundle("somebody/else", "cpu", revision="b" * 40)


def test_only_the_needed_files_are_fetched_at_the_pinned_commit(release, tiny_bundle, monkeypatch):
    asked = []

    def fetch(repo, files, revision):
        asked.append((repo, *files, revision))
        return ({RELEASED_REPO: release, "somebody/else": tiny_bundle}[repo] / files[0]).parent

    monkeypatch.setattr(metavoice.bundle.hub, "download", fetch)
    monkeypatch.setattr(BundleLocation, "local_path", lambda self, name: None)
    bundle = load_bundle(RELEASED_REPO, "cpu")
    assert asked == []
    bundle.speaker_encoder
    bundle.first
    assert set(asked) == {
        (RELEASED_REPO, name, PINNED_REVISIONS[RELEASED_REPO]) for name in ("speaker_encoder.pt", "first_stage.pt")
    }
    asked.clear()
    other = load_bundle("somebody/else", "cpu", revision="c" * 40)
    assert other.name == "somebody/else" and load_audio(other.voices["awb"]).duration > 1
    assert asked == [("somebody/else", "bundle.json", "c" * 40), ("somebody/else", "voices/awb.ogg", "c" * 40)]


def test_released_layout_in_another_repository(monkeypatch):
    def fetch(repo, files, revision):
        try:
            raise EntryNotFoundError.__new__(EntryNotFoundError)
        except EntryNotFoundError as e:
            raise BundleError("can't fetch") from e

    monkeypatch.setattr(metavoice.bundle.hub, "download", fetch)
    monkeypatch.setattr(BundleLocation, "local_path", lambda self, name: None)
    assert find_bundle("somebody/finetune", "d" * 40)[0] == make_preset_manifest("somebody/finetune")


def test_encodec_in_the_folder_of_the_release(release, tmp_path):
    assert load_bundle(release, "cpu").locate_part("codec")[1] == BundleLocation(
        repo=ENCODEC_REPO, revision=PINNED_REVISIONS[ENCODEC_REPO]
    )
    (release / "encodec_24khz").mkdir()
    assert load_bundle(release, "cpu").locate_part("codec")[1] == BundleLocation(release / "encodec_24khz")
    with raises_one_line(BundleError, "encodec_24khz/config.json is missing"):
        load_bundle(release, "cpu").codec


def test_paths_stay_inside_the_bundle(tmp_path):
    for name in ("../x", "/etc/passwd", "a/../../x"):
        with pytest.raises(BundleError, match="inside of"):
            BundleLocation(tmp_path).find(name)
