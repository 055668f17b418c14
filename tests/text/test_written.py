"Written words and the spoken words that say them: nothing is lost, and the time is linear."
import random
from pathlib import Path

import pytest

from metavoice.text.phonemizer import default_phonemizer
from metavoice.text.spoken import TextOptions, say_block, spoken
from metavoice.text.written import match_written, phoneme_spans, said_words

OPTIONS = TextOptions()
HELD = [line.split("\t") for line in Path(__file__).with_name("held.tsv").read_text(encoding="utf-8").splitlines()]


def say(word):
    return say_block(word, OPTIONS)


def match(text, options=OPTIONS):
    said = say_block(text, options)
    found = match_written(text, said, lambda word: say_block(word, options))
    assert " ".join(word for word, _ in found) == " ".join(text.split())
    assert sum(count for _, count in found) == len(said_words(said))
    return found


def said_for(text, options=OPTIONS):
    "Each written word with what says it."
    words, found = said_words(say_block(text, options)), {}
    for word, count in match(text, options):
        found[word], words = " ".join(words[:count]), words[count:]
    return found


@pytest.mark.parametrize("text, word, words", [
    ("It cost $12.50.", "$12.50.", "twelve dollars and fifty cents."),
    ("On 3/4/2024 we met.", "3/4/2024", "March fourth, twenty twenty-four"),
    ("Dr. Smith left.", "Dr.", "Doctor"),
    ("See www.example.com now.", "www.example.com", "example dot com"),
    ("He ran 10 km today.", "km", "kilometers"),
    ("It rose 5% & fell.", "5%", "five percent"),
    ("It rose 5% & fell.", "&", "and"),
    ("$5 12% £3", "12%", "twelve percent"),
    ("Wow 🙂 great", "Wow 🙂", "Wow"),
    ("He read #love", "#love", "hashtag love"),
    ("#love is all", "#love", "hashtag love"),
    ("Yes – no", "Yes –", "Yes,"),
    ("– Yes", "– Yes", "Yes"),
])
def test_what_says_a_word(text, word, words):
    found = said_for(text)
    assert word in found and found[word].replace(",", "") == words.replace(",", ""), found


def test_a_lexicon_is_followed():
    found = said_for("Ask Nguyen about AT&T.", TextOptions(lexicon={"Nguyen": "win", "AT&T": "A T and T"}))
    assert found["Nguyen"] == "win" and found["AT&T."].startswith("A T and T")


def test_words_that_are_said_in_another_order_stay_together():
    text = "We met on 3 March 2024 in Rome."
    found = said_for(text)
    assert found["met"] == "met" and found["Rome."] == "Rome."
    assert "March" in " ".join(word for word in found if word not in ("We", "met", "on", "in", "Rome."))


@pytest.mark.parametrize("row", range(0, len(HELD), 7))
def test_nothing_is_lost_in_texts_of_every_kind(row):
    for _, _, written, *_ in HELD[row : row + 7]:
        text = " ".join(written.replace("\\n", " ").split())
        if spoken(text).strip():
            match(text)


def test_random_texts_lose_nothing():
    rng = random.Random(3)
    parts = "a the dog $5 12% 3/4/2024 – & 🙂 Dr. 10 km 1999 e.g. 5:30 p.m. www.a.com (x) 'tis 1,000,000 ... IV No. 2"
    parts = parts.split(" ")
    for _ in range(60):
        match(" ".join(rng.choices(parts, k=rng.randint(1, 30))))


@pytest.mark.parametrize("unit", ["a ", "1 ", "$5 million ", "– ", "a b ", "3 March "])
def test_the_work_grows_with_the_text(unit):
    def steps(length):
        text, calls = (unit * length)[:length], []
        match_written(text, say(text), lambda word: calls.append(word) or say(word))
        return len(calls)

    assert steps(8000) <= 2.5 * steps(4000) + 50


def test_empty_texts():
    assert match_written("", "", say) == [] == match_written("", "a", say)
    assert match_written("🙂", "", say) == [("🙂", 0)]


def test_where_words_are_in_phonemes():
    read = default_phonemizer()
    for text in ("The x-ray of a twenty-one year old, e. g. a mother-in-law.", "A B C. It's Zbrwk's rock-'n'-roll!"):
        words, phonemes = said_words(text), read(text, "american")
        spans = phoneme_spans(words, phonemes, lambda word: read(word, "american"))
        assert len(spans) == len(words)
        places = [place for span in spans for place in span]
        assert places == sorted(places) and places[-1] <= len(phonemes)
        assert sum(first < last for first, last in spans) >= len(words) - 2


def test_a_word_without_phonemes_has_an_empty_span():
    assert phoneme_spans(["a", "x", "b"], "ɐ bi", dict(a="ɐ", x="", b="bi").get) == [(0, 1), (1, 1), (2, 4)]


