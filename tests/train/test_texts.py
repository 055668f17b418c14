"Open texts from patterns and WordNet."
import random
import re
import time
from pathlib import Path

import pytest

from metavoice.core.errors import MetaVoiceError
from metavoice.train.patterns import OPEN_PATTERNS, OPEN_WORDS
from metavoice.train.sentences import WORDNET_DIR
from metavoice.train.texts import (
    MOST_REPEATS,
    RANDOM_SLOTS,
    TEXT_SHARES,
    UNWANTED_WORDS,
    cut_piece,
    extract_terms,
    fill_pattern,
    lower_start,
    make_texts,
    read_examples,
    tidy_text,
)

wordnet = pytest.mark.skipif(not Path(WORDNET_DIR, "data.noun").exists(), reason="there is no WordNet")


def test_every_slot_can_be_filled():
    rng = random.Random(0)
    for kind, patterns in OPEN_PATTERNS.items():
        for pattern in patterns:
            for _ in range(3):
                text = tidy_text(fill_pattern(pattern, rng))
                assert re.fullmatch(r"[A-Za-z',.:;?! -]+", text), text
                assert "{" not in text and 1 <= len(text.split()) <= 60, text
    lists = (*OPEN_PATTERNS.values(), *OPEN_WORDS.values())
    used = {slot for texts in lists for text in texts for slot in re.findall(r"{(\w+)}", text)}
    assert used <= {*OPEN_WORDS, *RANDOM_SLOTS}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a apple and an book", "An apple and a book"),
        ("it was an hour, an unicorn, a honest man.", "It was an hour, a unicorn, an honest man."),
        ("they is late. is it? yes! no", "They are late. Is it? Yes! No"),
        ("who did it? asked Ann. come.", "Who did it? asked Ann. Come."),
    ],
)
def test_tidy(text, expected):
    assert tidy_text(text) == expected
    assert tidy_text("and a apple", capital=False) == "and an apple"


def test_lower_start():
    texts = ["It rains.", "I'm here.", "I know.", "London is big.", "Monday is late.", "Is it?", "Iris grow."]
    assert [lower_start(text)[0] for text in texts] == ["i", "I", "I", "L", "M", "i", "i"]


def test_pieces():
    rng = random.Random(1)
    pieces = [cut_piece("Although it was late, we walked home.", rng) for _ in range(300)]
    assert {"Although", "Although it,"} & set(pieces) and all(extract_terms(piece) for piece in pieces)
    assert {piece[-1] for piece in pieces} >= {",", "."} and max(len(piece.split()) for piece in pieces) == 7


def test_missing_wordnet_names_the_package(tmp_path):
    with pytest.raises(MetaVoiceError, match="apt-get install wordnet-base"):
        make_texts(3, folder=str(tmp_path))


@wordnet
def test_texts():
    texts = make_texts(3000, seed=5)
    assert texts == make_texts(3000, seed=5) != make_texts(3000, seed=6) and texts[:100] == make_texts(100, seed=5)
    for kind, text in texts:
        assert re.fullmatch(r"[A-Za-z',.:;?! -]+", text) and text == text.strip() and len(text) <= 200, text
        assert 1 <= len(text.split()) <= 26 and not UNWANTED_WORDS & set(extract_terms(text))
    kinds = [kind for kind, _ in texts]
    for kind, share in TEXT_SHARES.items():
        assert abs(kinds.count(kind) / 3000 - share) < 0.03
    once = [text for kind, text in texts if kind not in MOST_REPEATS]
    assert len(set(once)) > 0.99 * len(once)
    words = [len(text.split()) for _, text in texts]
    assert 7 <= sorted(words)[1500] <= 10 and sum(n <= 3 for n in words) / 3000 > 0.1


@wordnet
def test_examples():
    examples = read_examples()
    assert len(examples) > 30_000 and list(examples) == sorted(set(examples))
    assert all(text[-1] in ".?!" and 3 <= len(text.split()) <= 25 and text[0].isupper() for text in examples)


def test_patterns_are_linear_in_time():
    start = time.perf_counter()
    for text in ("a " * 50_000, "(" * 100_000, "a. " * 30_000, "'" * 100_000, "an a an a " * 10_000):
        tidy_text(text)
        extract_terms(text)
    assert time.perf_counter() - start < 5
