"The model card, and pushing to a stand-in for the Hub."
from pathlib import Path

import pytest

from metavoice.bundle.load import load_bundle
from metavoice.core.errors import BundleError
from metavoice.train.publish import make_model_card, push_to_hub


class FakeHub:
    "Keeps the names of the uploaded files."

    def __init__(self):
        self.files = []

    def create_repo(self, repo, **options):
        self.private = options["private"]
        return f"https://huggingface.co/{repo}"

    def upload_folder(self, repo_id, folder_path, path_in_repo="", **options):
        for file in Path(folder_path).rglob("*"):
            if file.is_file():
                self.files.append(str(Path(path_in_repo) / file.relative_to(folder_path)))


class UnreachableHub(FakeHub):
    "Fails as without a network."

    def create_repo(self, *args, **options):
        raise ConnectionError("no network")


def test_card_and_push(spoken_run, tmp_path):
    hub = FakeHub()
    assert push_to_hub(spoken_run, "me/voice", api=hub) == "https://huggingface.co/me/voice" and hub.private
    assert {"README.md", "bundle.json", "adapter.safetensors", "samples/step-000002-1.ogg"} <= set(hub.files)
    card = (spoken_run / "bundle" / "README.md").read_text()
    assert card.startswith("---\n") and "5 recordings" in card and "validation loss" in card
    assert "samples/step-000002-1.ogg" in card and str(spoken_run.parent) not in card
    load_bundle(spoken_run, "cpu")  # also with the card in its folder
    with pytest.raises(BundleError, match="ConnectionError"):
        push_to_hub(spoken_run, "me/voice", api=UnreachableHub())
    with pytest.raises(BundleError, match="no finished run"):
        make_model_card(tmp_path)
