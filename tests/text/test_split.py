"Splitting: sentences first, then clauses, words and characters; nothing is lost; pauses between segments."

import random
import time

import pytest
import torch

from metavoice.core.errors import OptionError
from metavoice.text.split import (
    character_breaks,
    clause_breaks,
    ends_sentence,
    merge_parts,
    pause_after,
    sentence_breaks,
    split_text,
    split_with_pauses,
)
from metavoice.text.tokeniser import SPLIT_PATTERN, Tokeniser


@pytest.fixture(scope="module")
def bytewise():
    "A tokeniser of the 256 bytes."
    return Tokeniser({bytes([b]): b for b in range(256)}, SPLIT_PATTERN)


@pytest.fixture(scope="module")
def golden_tokeniser(golden):
    "The tokeniser of a checkpoint in the released format."
    checkpoint = torch.load(golden / "first_stage.pt", weights_only=True, map_location='cpu')
    return Tokeniser.from_meta(checkpoint['meta']['tokenizer'])


def random_sentences(rng, n):
    vocabulary = [''.join(rng.choices('etaoinshrdlu', k=rng.randint(1, 9))) for _ in range(5000)]
    return [' '.join(rng.choices(vocabulary, k=8)).capitalize() + '.' for _ in range(n)]


def test_sentences_come_first(bytewise):
    text = (
        'Mr. Fox paid 3.50 to Dr. J. R. Smith. He left at 5 p.m. on Monday! "Why so early?" she asked. No. 7 was empty.'
    )
    assert split_text(text, bytewise, 50) == [
        "Mr. Fox paid 3.50 to Dr. J. R. Smith.",
        "He left at 5 p.m. on Monday!",
        '"Why so early?" she asked. No. 7 was empty.',
    ]


def test_then_clauses_then_words(bytewise):
    text = "we met Mr. Fox and Dr. Bear, then left"
    assert split_text(text, bytewise, 30) == ["we met Mr. Fox and Dr. Bear,", "then left"]
    text = "when it rained all day, the fox stayed at home; nobody came to see him"
    assert split_text(text, bytewise, 30) == [
        "when it rained all day,",
        "the fox stayed at home;",
        "nobody came to see him",
    ]
    assert split_text("one two three four five", bytewise, 12) == ["one two", "three four", "five"]


def test_a_long_word_is_cut(bytewise):
    segments = split_text("a " + "x" * 50 + " b", bytewise, 20)
    assert ''.join(segments) == "a" + "x" * 50 + "b" and max(map(len, segments)) < 20


def test_segments_are_of_similar_sizes(bytewise):
    sizes = [len(segment) for segment in split_text("some words " * 20, bytewise, 105)]
    assert len(sizes) == 3 and min(sizes) > 50


def test_merged_parts(bytewise):
    assert merge_parts(['aa ', 'bb ', 'cc ', 'dd ', 'e'], len, 12) == ['aa bb cc ', 'dd e']
    assert merge_parts(['aa ', 'bb '], len, 12) == ['aa bb '] and merge_parts([], len, 12) == []


def test_short_and_blank_texts(bytewise):
    assert split_text("  Hello. You. ", bytewise, 99) == ["Hello. You."]
    assert split_text(" \n", bytewise, 99) == [] == split_text("", bytewise, 99)
    with pytest.raises(OptionError, match="max_tokens 7 is too small; use at least 8"):
        split_text("a", bytewise, 7)


def test_nothing_is_lost(golden_tokeniser, bytewise):
    rng = random.Random(5)
    bits = [
        "word",
        "a",
        "3.14",
        "Mr.",
        "end.",
        "Oh!",
        "so,",
        "(yes)",
        "“q”",
        "e\u0301",
        "क्षि",
        "好。",
        "👩\u200d🚀",
        "\n\n",
        "\t",
        "y" * 70,
        "—",
        "...",
        "i.e.",
        "\x00",
        "\x1c",
        "\u3000",
    ]
    for tokeniser in (golden_tokeniser, bytewise):
        for _ in range(400):
            text = ''.join(rng.choice(bits) + rng.choice(["", " ", "  "]) for _ in range(rng.randint(0, 50)))
            limit = rng.choice([8, 11, 30, 120])
            segments = split_text(text, tokeniser, limit)
            assert ''.join(''.join(segments).split()) == ''.join(text.split())
            assert all(s and s == s.strip() and len(tokeniser.encode(s)) <= limit for s in segments)


def test_words_stay_whole(bytewise):
    text = ' '.join(random_sentences(random.Random(2), 60))
    for limit in (20, 50, 200):
        assert ' '.join(split_text(text, bytewise, limit)) == text


def test_time_does_not_explode(golden_tokeniser):
    rng = random.Random(0)
    texts = [' '.join(random_sentences(rng, 2000)), ' '.join(rng.choices(["lorem", "ipsum"], k=20_000))]
    for text in (*texts, "z" * 20_000, "(" * 20_000, ". " * 10_000):
        start = time.process_time()
        split_text(text, golden_tokeniser, 200)
        assert time.process_time() - start < 30, text[:20]


def cut(text, breaks):
    return [text[a:b].strip() for a, b in zip([0, *breaks], [*breaks, len(text)])]


@pytest.mark.parametrize(
    "text",
    [
        'Dr. Who paid 3.50 to J. Smith.|"Why?" he asked; nobody knew...|Later, at No. 5, it rained.',
        "I saw Mt. Fuji.|Then, e.g. in May, it rained.",
        "They closed with Pitt, Briggs & Co. at noon.|It rained.",
        "I live in the E.U.|How about you?",
        "Her email is Jane.Doe@example.com.|I sent her one.",
        "Hello?!|Is that you?",
        'She turned to him, "This is great." she said.',
        "I work for the U.S. Government in Virginia.",
        "यह सच है।|वह आया।",
        "هل هذا صحيح؟|نعم",
    ],
)
def test_sentence_breaks(text):
    sentences = text.split('|')
    assert cut(' '.join(sentences), sentence_breaks(' '.join(sentences))) == sentences


def test_sentence_breaks_of_blocks_and_other_scripts():
    assert cut('今天很好。我们走吧！好', sentence_breaks('今天很好。我们走吧！好')) == [
        '今天很好。',
        '我们走吧！',
        '好',
    ]
    page = "I saw Mt. Fuji. Then, e.g. in May, it rained. I live in the E.U. How about you? "
    assert cut(page * 60, sentence_breaks(page * 60))[:100] == cut(page * 26, sentence_breaks(page * 26))[:100]
    assert sentence_breaks('word ' * 2000) == []


@pytest.mark.parametrize(
    "before, mark, after, ends",
    [
        ('He met Mr', '.', 'Fox', False),
        ('in No', '.', '5', False),
        ('by J', '.', 'Smith', False),
        ('the U.S', '.', 'Army', False),
        ('"Stop', '!"', 'he said', False),
        ('etc', '.', 'and so', False),
        ('it was he', '.', 'Then', True),
        ('So do I', '.', 'We', True),
        ('at 5 p.m', '.', 'They', True),
        ('I said no', '.', 'He', True),
        ('Really', '?', 'Yes', True),
        ('in 1999', '.', 'It', True),
    ],
)
def test_ends_sentence(before, mark, after, ends):
    assert ends_sentence(before, mark, after) is ends


def test_breaks_below_the_sentence():
    assert cut('one, two; three - four', clause_breaks('one, two; three - four')) == ['one,', 'two;', 'three -', 'four']
    assert character_breaks('e\u0301a') == [2] and character_breaks('👩\u200d🚀b') == [3]


def test_pauses(bytewise):
    text = "One came.\nTwo went, three stayed.\n\n* * *\n\n  \nFour slept"
    parts = split_with_pauses(text, bytewise, 12)
    assert [part for part, _ in parts] == ["One came.", "Two went,", "three", "stayed.", "Four slept"]
    pauses = [pause for _, pause in parts]
    assert pauses[4] == 0 and pauses[3] > pauses[0] > pauses[1] > pauses[2] > 0
    assert pause_after('"No!"') == pause_after("so.") == pause_after("好。") > pause_after("so;") > pause_after("so")
    assert split_with_pauses("* * *", bytewise, 12) == []
