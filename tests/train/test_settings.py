"Settings of finetuning from a file."
import pytest

from metavoice.core.errors import OptionError
from metavoice.core.settings import make_config
from metavoice.train.settings import FinetuneConfig, text_defaults


@pytest.mark.parametrize(
    "text, message",
    [
        ("train: x\nrate: 1", "unknown setting 'rate'.*there are train"),
        ("- 1", "names and values"),
        ("method: qlora", "use last, full or lora"),
        ("batch_size: many", "whole number"),
    ],
)
def test_invalid_settings_file(tmp_path, text, message):
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(OptionError, match=message):
        make_config(FinetuneConfig, tmp_path / "settings.yaml")


def test_another_tokeniser_has_segments_of_its_own_length():
    own = dict(piece_tokens=120, takes=3)
    assert text_defaults(FinetuneConfig(), own) == own
    assert text_defaults(FinetuneConfig(tokeniser="nl.json", spoken=True), own) == dict(takes=3)
