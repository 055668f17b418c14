"Splitting: sentences first, then clauses, words and characters; nothing is lost; pauses; bounded in time."

import os
import random
import threading
import time

import pytest
import torch
from helpers import assert_linear

from metavoice.core.errors import OptionError, TextError
from metavoice.text.markup import Block, read_blocks
from metavoice.text.split import (
    PAUSES,
    character_breaks,
    clause_breaks,
    ends_sentence,
    merge_parts,
    pause_after,
    sentence_breaks,
    split_text,
    split_with_pauses,
)
from metavoice.text.spoken import PreparedText, TextOptions, prepare_text
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
    for text in (
        *texts,
        "z" * 100_000,
        "(" * 100_000,
        ". " * 50_000,
        '"a"' + ")" * 100_000,
        "a." * 50_000,
        "“" * 100_000,
    ):
        assert_linear(lambda part: split_text(part, golden_tokeniser, 200), text)


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
        "I live in the U.S.|How about you?",
        '"Stop!" Tom cried.|He ran.|"Why?" asked Ann.',
        '“Who is it?” Mr. Brown said.|Nobody answered.|“Really?”|He laughed.|“Really?” I asked.',
        "Hmm…|I see.|He waited… and waited...|Nobody came.",
        "« Bonjour. »|Il entra.|« Oui ! » dit-il.",
        '"Come in. "|She sat.',
        "He left (it rained.) at noon.|(He came.|He saw.)|Then he left.",
        "No.|I won't.|No. 5 is alive.|Vitamin C.|It helps.|Plan A.|Plan B.",
        "J. R. R. Tolkien wrote it.|You and I.|Did Albert I. Jones see it?",
        "Pvt. Ryan met Gov. Lee at 5 p.m. Monday.|They ate, etc.|Then they left at 5 a.m.|Snow fell.",
        "The river rose. . . .|He [...] left (?) today.",
        "Go! ?!|He went.|Wait!Now!|Yes.",
        "we had fun.|are you in?|yes!",
        "He said it.|\"await\" is a word.|It ends here.[2] Or there.",
        "5. Then he left.|It was 1984.|It rained.",
        "3, 2, 1.|Go!",
    ],
)
def test_sentence_breaks(text):
    text = text.replace('Wait!Now!|', 'Wait!|Now!|')
    sentences, joined = text.split('|'), text.replace('Wait!|', 'Wait!').replace('|', ' ')
    assert cut(joined, sentence_breaks(joined)) == sentences


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


def prepared(*blocks):
    "A prepared text of blocks, or of paragraphs."
    return PreparedText([Block(block) if isinstance(block, str) else block for block in blocks], ())


def test_pauses(bytewise):
    parts = split_with_pauses(prepared("One came. Two went, three stayed.", "Four slept"), bytewise, 12)
    assert [part for part, _ in parts] == ["One came.", "Two went,", "three", "stayed.", "Four slept"]
    pauses = [pause for _, pause in parts]
    assert pauses[4] == 0 and pauses[3] > pauses[0] > pauses[1] > pauses[2] > 0
    assert pause_after('"No!"') == pause_after("so.") == pause_after("好。") > pause_after("so;") > pause_after("so")
    assert split_with_pauses(prepared("* * *"), bytewise, 12) == [] == split_with_pauses(prepared(), bytewise, 12)


def test_pauses_of_blocks(bytewise):
    blocks = [Block(kind, kind) for kind in ('heading', 'item', 'line', 'paragraph')]
    parts = split_with_pauses(prepared(*blocks, Block("a", 'item', 2.0), Block("b", pause=0.0), "end"), bytewise, 12)
    assert parts == [(b.kind, PAUSES[b.kind]) for b in blocks] + [("a", 2.0), ("b", 0.0), ("end", 0.0)]
    assert PAUSES['heading'] == PAUSES['paragraph'] > PAUSES['item'] > PAUSES['line'] > PAUSES['sentence']


def test_a_block_without_words_passes_its_pause_on(bytewise):
    blocks = (
        Block("...", pause=9.0),
        Block("one."),
        Block('"', pause=3.0),
        Block("", pause=2.0),
        Block("?!"),
        Block("two."),
    )
    assert split_with_pauses(prepared(*blocks), bytewise, 12) == [("one.", 3.0), ("two.", 0.0)]


CHAPTER = """Chapter One
The River

The old man walked. “Come in,” she said.

- one
- two [pause 1.5s] three

* * *

“No.”

“Why?” he asked."""


def test_a_chapter(bytewise):
    text = prepare_text(CHAPTER, bytewise, TextOptions(spoken=False))
    assert split_with_pauses(text, bytewise, 60) == [
        ("Chapter One", PAUSES['line']),
        ("The River", PAUSES['paragraph']),
        ('The old man walked. "Come in," she said.', PAUSES['paragraph']),
        ("one", PAUSES['item']),
        ("two", 1.5),
        ("three", 1.0),
        ('"No."', PAUSES['paragraph']),
        ('"Why?" he asked.', 0.0),
    ]


def test_one_sentence_a_segment(bytewise):
    text = "Where is it? He left. No. 5 was empty; nobody, he said, had ever seen it. “Go!” ... ”"
    assert split_with_pauses(prepared(text, "Hi"), bytewise, 40, one_sentence=True) == [
        ("Where is it?", PAUSES['sentence']),
        ("He left.", PAUSES['sentence']),
        ("No. 5 was empty; nobody, he said,", PAUSES['clause']),
        ("had ever seen it.", PAUSES['sentence']),
        ("“Go!” ... ”", PAUSES['paragraph']),
        ("Hi", 0.0),
    ]
    assert len(split_with_pauses(prepared("The old man went. Where is it?"), bytewise, 99, one_sentence=True)) == 2
    assert len(split_with_pauses(prepared("The old man went. Where is it?"), bytewise, 99)) == 1


@pytest.fixture(scope="module")
def nano():
    "A tokeniser of the 256 bytes without quotes."
    return Tokeniser(
        {bytes([b]): b for b in range(256)},
        SPLIT_PATTERN,
        alphabet="!',-.:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
    )


@pytest.mark.parametrize("options", [TextOptions(), TextOptions(spoken=False)])
def test_quotes_decide_though_they_are_not_said(nano, options):
    text = '“Stop!” Tom cried. “Who is it?” Mr Brown said. Nobody answered. “Really?” "Yes."'
    parts = split_with_pauses(prepare_text(text, nano, options), nano, 80, one_sentence=True)
    mister = "Mister" if options.spoken else "Mr"
    assert [part for part, _ in parts] == [
        "Stop! Tom cried.", f"Who is it? {mister} Brown said.", "Nobody answered.", "Really?", "Yes."]


def test_segments_without_quotes_keep_to_the_limit(nano):
    rng = random.Random(8)
    bits = ["word", "a", "Mr.", "End.", "Oh!", "so,", '"', "“", "”", '"" "', "...", "y" * 70, "—", " ", " ", "(", ")"]
    for _ in range(300):
        text = "a" + "\n\n".join("".join(rng.choices(bits, k=rng.randint(0, 30))) for _ in range(3))
        limit, one_sentence = rng.choice([8, 11, 30, 120]), rng.random() < 0.5
        prepared = prepare_text(text, nano, TextOptions(spoken=rng.random() < 0.5))
        parts = [part for part, _ in split_with_pauses(prepared, nano, limit, one_sentence)]
        assert [c for part in parts for c in part if c.isalnum()] == [c for c in prepared.text if c.isalnum()]
        for part in parts:
            assert part and part == part.strip() and set(part) <= nano.known and len(nano.encode(part)) <= limit


@pytest.mark.parametrize(
    "text", ["Hi", "No.", "A", "5", "Hmm…", "3, 2, 1", "I", "?! Yes", "“No.”", "Mr.", "...and then"]
)
def test_short_texts_are_one_segment(text, bytewise):
    for one_sentence in (False, True):
        assert split_with_pauses(prepared(text), bytewise, 30, one_sentence) == [(text, 0.0)]


def test_n_sentences_are_n_segments(bytewise):
    rng = random.Random(7)
    ends = ['.', '!', '?', '…', '.”', '?"', '!)']
    for _ in range(200):
        sentences = [s[:-1] + rng.choice(ends) for s in random_sentences(rng, rng.randint(1, 5))]
        segments = split_with_pauses(prepared(' '.join(sentences)), bytewise, 200, one_sentence=True)
        assert [segment for segment, _ in segments] == sentences


def test_nothing_speakable_is_dropped(bytewise):
    rng = random.Random(6)
    bits = [
        "word",
        "a",
        "Mr.",
        "End.",
        "Oh!",
        "so,",
        "(",
        ")",
        "“",
        "”",
        '"',
        "...",
        "…",
        "y" * 70,
        "3",
        "好。",
        "—",
        " ",
        " ",
    ]
    for _ in range(400):
        blocks = [' '.join(''.join(rng.choices(bits, k=rng.randint(0, 30))).split()) for _ in range(3)]
        limit, one_sentence = rng.choice([8, 11, 30, 120]), rng.random() < 0.5
        parts = split_with_pauses(prepared(*blocks), bytewise, limit, one_sentence)
        letters = [c for block in blocks for c in block if c.isalnum()]
        assert [c for part, _ in parts for c in part if c.isalnum()] == letters
        for part, _ in parts:
            assert any(c.isalnum() for c in part) and part == part.strip() and len(bytewise.encode(part)) <= limit


# time
FEARED = list('()[]{}<>"\'“”‘’«»`*_~#|&;:,.!?…-–—/\\^$+=@%0123456789aAbBiIéß好।؟ \n\t\u200b\u0301😀\ufdd0') + (
    "a) 1/ 321 a. A. Mr. No. U.S. e.g. Hi. \"a\" “a.” . . . - a\n \n\n A\n a- 1. ``` ** __ ~~ [a]( ![ ]( [^1] "
    "<b> <a <!-- --> <script> &amp; &# [pause ] http://a.b a@b.c $1 1:2 1,000 -- --- | |- > # \\* he said. Tom"
).split(' ')


def feared_string(rng, n=100_000):
    "Return a random string of n characters that are hard for regular expressions."
    units = [''.join(rng.choices(FEARED, k=rng.randint(1, 4))) for _ in range(rng.choice([1, 1, 2, 3, 8, 40]))]
    if rng.random() < 0.5:  # one thing again and again, between two others
        unit = ''.join(units)[:60]
        return (rng.choice(FEARED) + unit * (n // len(unit)) + rng.choice(FEARED))[-n:]
    return ''.join(rng.choices(units, k=n // min(map(len, units))))[:n]


def read_and_split(text, tokeniser, one_sentence):
    "Read, fit and split a text; check that every letter and digit is in a part."
    try:
        blocks = [Block(tokeniser.fit(block.text)[0], block.kind, block.pause) for block in read_blocks(text)]
    except TextError as e:
        assert 'pause' in str(e)
        blocks = [Block(tokeniser.fit(' '.join(text.split()))[0])]
    parts = split_with_pauses(PreparedText(blocks, ()), tokeniser, 80, one_sentence)
    spoken = sum(c.isalnum() for part, _ in parts for c in part)
    assert spoken == sum(c.isalnum() for block in blocks for c in block.text)


@pytest.mark.parametrize("seed", [*range(30), 1127])
def test_feared_strings_take_linear_time(seed, golden_tokeniser):
    text = feared_string(random.Random(seed))
    assert_linear(lambda part: read_and_split(part, golden_tokeniser, seed % 2 == 1), text)


@pytest.mark.slow
def test_many_feared_strings_take_linear_time(golden_tokeniser):
    count = int(os.environ.get("METAVOICE_FUZZ_STRINGS", 100))  # 10,000 take an hour
    first = int(os.environ.get("METAVOICE_FUZZ_SEED", 1000))
    for seed in range(first, first + count):
        text = feared_string(random.Random(seed))
        assert_linear(lambda part: read_and_split(part, golden_tokeniser, seed % 2 == 1), text)


def test_other_threads_run_meanwhile(golden_tokeniser):
    text = "See...[" + "321 " * 25_000 + '] there. "a"' + ")" * 1400
    thread = threading.Thread(target=lambda: [read_and_split(text, golden_tokeniser, True) for _ in range(3)])
    thread.start()
    waits, last = [], time.perf_counter()
    while thread.is_alive():
        time.sleep(0.001)
        now = time.perf_counter()
        waits.append(now - last)
        last = now
    assert len(waits) > 3 and sorted(waits)[-2] < 0.5
