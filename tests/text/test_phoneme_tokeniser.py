"A tokeniser of phonemes: one token a symbol, two accents, its file, and splitting by its tokens."
import json
from dataclasses import replace

import pytest

from metavoice.core.errors import BundleError, MetaVoiceError, OptionError, TextError
from metavoice.text.markup import Block
from metavoice.text.phoneme_tokeniser import PhonemeTokeniser, read_tokeniser_json
from metavoice.text.phonemes import CONSONANTS, VOWELS
from metavoice.text.split import split_text, split_with_pauses
from metavoice.text.spoken import PreparedText, prepare_text
from metavoice.text.tokeniser import SPLIT_PATTERN, Tokeniser
from metavoice.train.batches import word_token_spans

SYMBOLS = f"{VOWELS}{CONSONANTS}ˈˌː ,.?!"


def spell(text, accent):
    "A phonemizer for tests: letters are their own phonemes, and the British say ɑ."
    said = "".join(c for c in text.lower() if c in "abdefhijklmnpstuvwz ,.?!")
    return said.replace("e", "ɛ").replace("a", "ɑ" if accent == "british" else "æ")


@pytest.fixture
def tokeniser():
    return replace(PhonemeTokeniser.train([SYMBOLS]), phonemizer=spell)


def test_one_token_a_sign(tokeniser):
    ids = tokeniser.encode("Bad men, sad hat.")
    assert tokeniser.decode(ids) == "bæd mɛn, sæd hæt." and len(ids) == 18 and ids[-1] == tokeniser.end_of_text
    assert ids == tokeniser.encoding.encode_ordinary("bæd mɛn, sæd hæt.") + [tokeniser.end_of_text]
    assert all(len(tokeniser.decode([i])) == 1 for i in ids[:-1])
    assert len(tokeniser) == len(tokeniser.mergeable_ranks) + 1 < 340


def test_every_sign_has_a_token(tokeniser):
    assert tokeniser.decode(tokeniser.encode_phonemes(SYMBOLS)) == SYMBOLS
    assert sorted(tokeniser.symbols) == sorted(SYMBOLS)


def test_accents(tokeniser):
    british = tokeniser.with_accent("british")
    assert tokeniser.encode("bad", "british") == british.encode("bad") != tokeniser.encode("bad")
    assert british.encode("bad", "american") == tokeniser.encode("bad") and tokeniser.with_accent(None) is tokeniser
    assert tokeniser.require_accent("british") == british
    for wrong in (lambda: tokeniser.encode("bad", "welsh"), lambda: tokeniser.require_accent("welsh")):
        with pytest.raises(OptionError, match="'welsh'.*american or british"):
            wrong()


def test_letters_have_no_accent():
    letters = Tokeniser({bytes([b]): b for b in range(256)}, SPLIT_PATTERN)
    assert letters.with_accent("british") is letters and letters.require_accent(None) is letters
    with pytest.raises(OptionError, match="'british' is unknown: the model reads letters"):
        letters.require_accent("british")


def test_signs_without_a_token_are_replaced(tokeniser):
    assert tokeniser.fit_symbols("bæd — mɛn…  “hæt”; ʘ") == "bæd, mɛn. hæt,"
    few = PhonemeTokeniser.train(["bətO, "])
    assert few.fit_symbols("bˈɐTQ!") == "bətO"


def test_states_are_positions_among_the_ids(tokeniser):
    ids = tokeniser.encode_phonemes("bˈæd, ˈɔːl")
    states = tokeniser.states(ids)
    assert [state.name for state in states] == ["pau", "b", "æ", "d", "pau", "ɔ", "l", "pau"]
    assert [tokeniser.decode(ids[s.start : s.end]) for s in states] == ["", "b", "ˈæ", "d", ",", "ˈɔː", "l", ""]


def test_words_are_spans_of_tokens(tokeniser):
    ids = tokeniser.encode("Bad men, sad hat.")
    words = [tokeniser.decode(ids[a:b]).strip() for a, b in word_token_spans(ids, tokeniser)]
    assert words == ["bæd", "mɛn,", "sæd", "hæt."]


def test_json(tokeniser):
    text = tokeniser.to_json()
    again = read_tokeniser_json(text)
    assert again == replace(tokeniser, phonemizer=None) and type(again) is PhonemeTokeniser
    content = json.loads(text)
    assert content["reads"] == "phonemes" and content["symbols"] == tokeniser.symbols
    letters = Tokeniser({bytes([b]): b for b in range(256)}, SPLIT_PATTERN)
    assert type(read_tokeniser_json(letters.to_json())) is Tokeniser


@pytest.mark.parametrize("change", [
    dict(symbols="ʘ"), dict(symbols=""), dict(ranks=["61"]), dict(reads="runes"), dict(symbols=None)
])  # fmt: skip
def test_broken_json(tokeniser, change):
    content = json.loads(tokeniser.to_json()) | change
    with pytest.raises(BundleError):
        read_tokeniser_json(json.dumps(content))


def test_training_needs_phonemes():
    for nothing in ([], [""], [" "]):
        with pytest.raises(TextError, match="no phonemes"):
            PhonemeTokeniser.train(nothing)


def test_text_is_fitted_and_prepared(tokeniser):
    assert tokeniser.fit("“Café”, said Zoë…") == ("Cafe, said Zoe...", [])
    prepared = prepare_text("It cost $5 – 世", tokeniser)
    assert prepared.text.startswith("It cost five dollars") and prepared.left_out == ("世",)
    with pytest.raises(MetaVoiceError):
        tokeniser.check_text("世")


@pytest.mark.parametrize("limit", [8, 20, 60])
def test_segments_keep_to_the_limit(tokeniser, limit):
    text = "Bad men stand. A sad land, and a mad band; as I said! Jam. " * 3 + "x" * 90
    segments = split_text(text, tokeniser, limit)
    assert all(len(tokeniser.encode(segment)) <= limit for segment in segments)
    assert "".join("".join(segments).split()) == "".join(text.split())


def test_quotes_are_left_out_of_segments(tokeniser):
    prepared = PreparedText([Block("Stop! Tim said.")], (), ('"Stop!" Tim said.',))
    assert split_with_pauses(prepared, tokeniser, 60, True) == [("Stop! Tim said.", 0.0)]
