"The token layout of the released models, and of other sizes."

import pytest

from metavoice.core.errors import AudioError, BundleError, MetaVoiceError, OptionError, OutputError, TextError
from metavoice.core.layout import TokenLayout


def test_released_layout():
    layout = TokenLayout()
    assert (layout.end_of_audio, layout.text_offset, layout.end_of_text, layout.first_vocab) == (2048, 2049, 2561, 2562)
    assert (layout.pad, layout.second_text_offset, layout.second_vocab) == (1024, 1025, 1538)


@pytest.mark.parametrize("size, ranks", [(16, 256), (1024, 512), (2048, 1000)])
def test_spans_follow_each_other(size, ranks):
    layout = TokenLayout(size, ranks)
    assert layout.text_offset == 2 * size + 1 and layout.first_vocab == 2 * size + 1 + ranks + 1
    assert layout.second_vocab == size + 1 + ranks + 1 and layout.end_of_text == layout.first_vocab - 1


def test_errors_share_one_base_and_keep_the_builtin_ones():
    for kind, builtin in (
        (TextError, ValueError),
        (AudioError, ValueError),
        (OptionError, ValueError),
        (OutputError, OSError),
    ):
        assert issubclass(kind, MetaVoiceError) and issubclass(kind, builtin)
    assert issubclass(BundleError, MetaVoiceError)
