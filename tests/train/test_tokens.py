"A corpus as tokens: phones of frames, and the texts of both kinds of tokeniser."
import pytest
import torch
from tiny import read_letters

from metavoice.core.errors import OptionError
from metavoice.models.nano_codec import NanoCodec, NanoCodecConfig
from metavoice.text.phoneme_tokeniser import PhonemeTokeniser
from metavoice.text.phonemes import PHONES, phone_states
from metavoice.train.phone_corpus import prepare_corpus
from metavoice.train.tokens import encode_corpus, state_spans


@pytest.fixture(scope="module")
def codec():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = dict(width=16, hidden=16, encoder_blocks=1, decoder_blocks=1, latent_dim=8, codebook_size=96)
        codec = NanoCodec(NanoCodecConfig(hop=960, **sizes, phones=[*PHONES])).eval()
        codec.quantiser.codebooks.normal_()
    codec.entry_phones.copy_(torch.arange(96) % len(PHONES))
    return codec


@pytest.fixture(scope="module")
def corpus(demo_corpus, codec, tmp_path_factory):
    return prepare_corpus([demo_corpus.path], tmp_path_factory.mktemp("prepared"), codec)


def test_spans():
    assert state_spans(phone_states("ɡˈɑː, ə"), 7) == [[0, 1], [0, 1], [1, 4], [4, 5], [6, 7], [7, 8]]


def test_phonemes(corpus, codec):
    reader = PhonemeTokeniser.train([u.phonemes for u in corpus.utterances])
    data = encode_corpus(corpus, codec, reader, batch_size=4)
    assert [u.index for u in data] == list(range(6))
    for u, known in zip(data, corpus.utterances):
        assert reader.decode(u.text) == known.phonemes and len(u.words) == len(known.states)
        assert u.codes.shape == (8, len(known.labels)) and u.codes.dtype == torch.int16
        said = [PHONES[codec.entry_phones[code]] for code in u.codes[0].tolist()]
        assert said == [known.states[label].name for label in known.labels]
        for state, (a, b) in zip(known.states, u.words):
            assert state.optional or state.name in reader.decode(u.text[a:b])


def test_signs_without_a_token(corpus, codec):
    "A stand-in replaces them; an utterance that would lose a phone is left out."
    known = corpus.utterances[0].phonemes
    without = PhonemeTokeniser.train([u.phonemes.replace("ᵊ", "ə") for u in corpus.utterances])
    assert len(encode_corpus(corpus, codec, without)) == 6
    lacking = PhonemeTokeniser.train([known.replace("ð", "")])
    assert all("ð" not in corpus.utterances[u.index].phonemes for u in encode_corpus(corpus, codec, lacking))


def test_letters(corpus, codec):
    letters, data = read_letters(), []
    for u in encode_corpus(corpus, codec, letters):
        data.append(u)
        known = corpus.utterances[u.index]
        assert [letters.decode(u.text[a:b]).strip() for a, b in u.words] == known.text.split()
        assert len(u.frame_words) == len(known.labels) and u.frame_words.max() <= len(u.words)
    assert len(data) == len(corpus)


def test_the_corpus_has_the_codec_s_frames(corpus, nano):
    with pytest.raises(OptionError, match="prepared for frames of 960 samples, not"):
        encode_corpus(corpus, NanoCodec(NanoCodecConfig(width=16, hidden=16)), nano.tokeniser)
