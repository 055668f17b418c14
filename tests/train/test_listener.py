"Training the CTC scorer: what it reads, and the phones of frames."
import pytest
from tiny import read_letters

from metavoice.audio.sound import Audio
from metavoice.models.listener import CTCScorer, CTCScorerConfig, ctc_score, encode_letters
from metavoice.models.nano_codec import NanoCodec, NanoCodecConfig
from metavoice.text.phoneme_tokeniser import PhonemeTokeniser
from metavoice.text.phonemes import PHONES
from metavoice.train.listener import ListenerBatches, fit_listener_config
from metavoice.train.phone_corpus import prepare_corpus

SHAPE = dict(width=16, wide=16, hidden=32, blocks=1)


@pytest.fixture(scope="module")
def corpus(demo_corpus, tmp_path_factory):
    codec = NanoCodec(NanoCodecConfig(width=16, hidden=16, encoder_blocks=1, decoder_blocks=1))
    return prepare_corpus([demo_corpus.path], tmp_path_factory.mktemp("prepared"), codec)


@pytest.fixture(scope="module")
def reader(corpus):
    return PhonemeTokeniser.train([u.phonemes for u in corpus.utterances])


def test_alphabets(corpus, reader):
    phonemes = fit_listener_config(CTCScorerConfig(**SHAPE), corpus, reader)
    assert (phonemes.reads, phonemes.alphabet, phonemes.phones) == ("phonemes", "".join(PHONES[1:]), len(PHONES))
    letters = fit_listener_config(phonemes, corpus, read_letters())
    assert letters.reads == "letters" and letters.alphabet.startswith(" '") and letters.alphabet.islower()
    assert letters.width == 16


@pytest.mark.parametrize("text, reads, expected", [
    ("ðə bˈʊk, A ʒ", "phonemes", "ðəbʊkA"), ("Book, a  Z!", "letters", "book a"), ("", "phonemes", "")
])
def test_letters_of_a_text(text, reads, expected):
    alphabet = "ðəbʊkA" if reads == "phonemes" else " abko"
    ids = encode_letters(text, CTCScorerConfig(alphabet=alphabet, reads=reads))
    assert "".join(alphabet[i - 1] for i in ids) == expected


@pytest.mark.parametrize("kind", ["phonemes", "letters"])
def test_batches(corpus, reader, kind):
    tokeniser = reader if kind == "phonemes" else read_letters()
    scorer = CTCScorer(fit_listener_config(CTCScorerConfig(**SHAPE), corpus, tokeniser))
    batches = ListenerBatches(corpus, scorer, 9.0, 3)
    x, phones, letters, counts, frames = batches([0, 2])
    u = corpus.utterances[0]
    assert phones.shape == (2, x.shape[1] // 240) and counts.sum() == len(letters)
    text = "".join(scorer.config.alphabet[i - 1] for i in letters[: counts[0]])
    said = [state.name for state in u.states if not state.optional]
    assert [*text] == said if kind == "phonemes" else text == u.text.lower().rstrip(".")
    heard = [PHONES[phone] for phone in phones[0].unique_consecutive().tolist() if phone > 0]
    assert heard == [name for i, name in enumerate(said) if not i or name != said[i - 1]]
    audio = Audio(corpus.audio(0), 24000)
    scores = [ctc_score(scorer.eval(), other, audio) for other in (u.phonemes, "")]
    assert scores[0] < 0 and scores[1] == 0
