"What is written becomes what is said: the table of pairs, hostile texts, lexicons, languages, and texts as prepared."
import random
from pathlib import Path

import pytest
from helpers import assert_linear

from metavoice.core.errors import OptionError, TextError
from metavoice.text.markup import Block
from metavoice.text.split import split_with_pauses
from metavoice.text.spoken import (
    LANGUAGES,
    Lexicon,
    TextOptions,
    prepare_text,
    read_lexicon,
    register_language,
    say_block,
    spoken,
)
from metavoice.text.tokeniser import SPLIT_PATTERN, Tokeniser

NANO = Tokeniser(
    {bytes([b]): b for b in range(256)},
    SPLIT_PATTERN,
    alphabet="!',-.:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
)
LATIN = Tokeniser({bytes([b]): b for b in range(256)}, SPLIT_PATTERN)

TABLE = Path(__file__).with_name("spoken.tsv").read_text(encoding="utf-8").splitlines()
PAIRS = [line.replace("\\n", "\n").split("\t") for line in TABLE if line and not line.startswith("# ")]

# The texts of the first table of known faults of such systems.
CASES = {
    "“Come in,” she said.": "Come in, she said.",
    'She said "come in".': "She said come in.",
    "The dog (a big one) slept.": "The dog, a big one, slept.",
    "# Chapter One": "Chapter One",
    "my_file": "my file",
    "Good morning 😀": "Good morning",
    "café": "cafe",
    "It cost $12.50.": "It cost twelve dollars and fifty cents.",
    "Only 5€ left": "Only five euros left",
    "About 50% of it": "About fifty percent of it",
    "He and/or she": "He and or she",
    "bread & butter": "bread and butter",
    "bread &amp; butter": "bread and butter",
    "Mr. Brown met Dr. Smith.": "Mister Brown met Doctor Smith.",
}


def test_table_has_at_least_150_pairs():
    assert len(PAIRS) >= 150


@pytest.mark.parametrize("language, written, said", PAIRS)
def test_written_becomes_said(language, written, said):
    assert spoken(written, language) == said


@pytest.mark.parametrize("language, written, said", PAIRS)
def test_said_text_stays_when_said_again(language, written, said):
    assert spoken(said, language) == said


@pytest.mark.parametrize("written, said", CASES.items())
def test_refused_texts_reach_nano_in_words(written, said):
    prepared = prepare_text(written, NANO)
    assert prepared.text == said and prepared.left_out == ()


UNITS = [
    "(", ")", '"a"))', "[321 321] ", "[", "{", "......", ". ", "1/", "1,", "1.", "1-", "1:", "+1 ", "$1", "1,111",
    "½", "²",
    "a.", "A.", "A ", "AB ", "St. ", "Dr. ", "No. ", "U.S. ", "IV ", "Part I ", "I'm ", "A's ", "etc. ", "e.g. ",
    "1st St. ",
    "_a_", "*a*", "<a ", "<a>", "&a", "&amp;", "`", "~", "#", "\\", "C:\\", "/a", "a/", "~/a", "@", "a@", "a@b.",
    "www.a.",
    "https://a.", "http://", "a.py ", "-", "--", "– ", "—", "!?", ",", "“", "'", "…", "😀", "🇫", "👨\u200d", "1️⃣",
    "\u200b",
    "\u0301", "\u00a0", "α", "é", "東", "\n", "\n\n", " \n", "- a\n", "1. a\n", "| a ", "> ", "[pause 1s]x", "aB",
    "a" * 300,
]


def spoken_or_silent(text):
    try:
        return spoken(text)
    except TextError:  # too much silence asked for
        return ""


@pytest.mark.parametrize("unit", UNITS)
def test_repeated_units_take_linear_time(unit):
    text = unit * (100_000 // len(unit))
    said = assert_linear(spoken_or_silent, text)
    assert said == said.strip() and len(said) < 30 * len(text)


@pytest.mark.parametrize("seed", range(2))
def test_random_texts_take_linear_time(seed):
    rng = random.Random(seed)
    text = "".join(rng.choices(" .,;:!?/@#_-–—aBz1290()[]{}\"'\\*&$€%+=<>|~^`😀²½é東\n", k=100_000))
    language = rng.choice(["en", "en-GB"])
    assert_linear(lambda part: spoken(part, language), text)


@pytest.mark.parametrize("unit", ["1. a\n", "a\n\n", "- a\n", "a.\n", '"a!"\n', "lines", "numbers", "names"])
def test_tiny_blocks_take_linear_time(unit):
    rng = random.Random(3)
    texts = dict(
        lines="".join(rng.choices("ab 1.\n\n", k=100_000)),
        numbers="\n".join(map(str, range(17_000))),
        names="\n\n".join("Dr. " + "".join(rng.choices("abcde", k=4)) for _ in range(10_000)),
    )
    text = texts.get(unit, unit * (100_000 // len(unit)))
    parts = assert_linear(lambda part: split_with_pauses(prepare_text(part, NANO), NANO, 80, one_sentence=True), text)
    assert len(parts) > 5000


def test_random_short_texts_are_said_without_digits():
    rng = random.Random(5)
    bits = [
        "a", "B", "St.", "Dr.", "U.S.", "IBM", "No.", "$", "€", "5", "12", "1999", "3.5", ".", ",", "?", "!", "(",
        ")", '"',
        "'", "-", "—", "…", "/", "@", "#", "&", "www.a.com", "x@y.org", "a_b.py", "%", "°C", "km", "😀", "é", " ",
        " ", " ",
        "\n", "\n\n", "*", "`", "[", "]", "<b>", "pm", "May", "IV", "½", "²",
    ]
    for _ in range(1500):
        text = "".join(rng.choices(bits, k=rng.randint(1, 25)))
        said = spoken(text)
        assert not set(said) & set("0123456789½²$€%@#&/()[]{}<>*_`…—\\"), (text, said)
        try:
            prepared = prepare_text(text, NANO)
        except TextError:
            continue
        assert prepared.left_out == () and set(prepared.text) <= set(NANO.alphabet + " \n"), text


def test_unknown_characters_are_left_out_and_named():
    prepared = prepare_text("He met 東京 in Москва, and 東 again.", NANO)
    assert prepared.left_out == tuple("東京Москва")
    assert prepared.text == "He met in, and again."
    assert prepare_text("Hello 😀 “you”\u200b (there) *", NANO).left_out == ()


def test_strict_names_the_first_unknown_character():
    strict = TextOptions(strict=True)
    with pytest.raises(TextError, match=r"'東' \(U\+6771, CJK UNIFIED IDEOGRAPH-6771\) at position 7"):
        prepare_text("He met 東京.", NANO, strict)
    assert prepare_text("The café (5 €) — 😀", NANO, strict).text == "The cafe, five euros"


@pytest.mark.parametrize("text", ["?!", "…", "😀", "* * *", "東京", "()", "—", "\u200b."])
def test_texts_without_words_are_refused(text):
    with pytest.raises(TextError, match="there is nothing to say in"):
        prepare_text(text, NANO)


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_empty_texts_are_refused(text):
    with pytest.raises(TextError, match="the text is empty; give at least one word"):
        prepare_text(text, NANO)


def test_text_has_to_be_a_string():
    with pytest.raises(TextError, match="has to be a string, not int"):
        prepare_text(7, NANO)


def test_blocks_keep_kind_and_pause():
    prepared = prepare_text("# Part 2\n\nIt cost 5€. [pause 2s]\n\n- one", NANO)
    assert prepared.blocks == [
        Block("Part two", "heading"), Block("It cost five euros.", "paragraph", 2.0), Block("one", "item")
    ]
    assert prepared.text == "Part two\n\nIt cost five euros.\n\none"


def test_pause_of_a_block_without_words_is_kept():
    prepared = prepare_text("One.\n\n😀 [pause 3s]\n\nTwo.", NANO)
    assert [(block.text, block.pause) for block in prepared.blocks] == [("One.", 3.0), ("Two.", None)]


def test_as_written_is_only_fitted():
    written = TextOptions(spoken=False)
    assert prepare_text("Dr. Smith has 5 cafés.", LATIN, written).text == "Dr. Smith has 5 cafés."
    prepared = prepare_text("Dr. Smith has 5 cafés & more.", NANO, written)
    assert prepared.text == "Dr. Smith has cafes more." and prepared.left_out == ("5", "&")


def test_latin1_keeps_accents_and_quotes():
    assert prepare_text("“Zoë” paid 5€", LATIN).text == '"Zoë" paid five euros'


def test_quotes_are_kept_for_the_split_alone():
    text = "“Stop!” Tom cried. “Why?”\n\nHe ran."
    prepared = prepare_text(text, NANO)
    assert prepared.text == "Stop! Tom cried. Why?\n\nHe ran."
    assert prepared.quoted == ('"Stop!" Tom cried. "Why?"', "He ran.")
    written = prepare_text(text, NANO, TextOptions(spoken=False))
    assert (written.text, written.quoted) == (prepared.text, prepared.quoted)
    assert prepare_text(text, LATIN).quoted is None and prepare_text(text, LATIN).text.startswith('"Stop!"')


def test_emoji_are_named_on_request():
    assert spoken("Good 👍🏽, a 👨‍👩‍👧 in 🇫🇷 :-)", emoji=True) == "Good, thumbs up, a, family, in, flag F R, smile"
    assert prepare_text("🚀", NANO, TextOptions(emoji=True)).text == "rocket"


LEXICON = {"Łukasz": "Wookash", "gif": "jif", "GIF89a": "old jif", "New York": "Big Apple", "C++": "see plus",
    "1e3": "kilo"}


@pytest.mark.parametrize(
    "written, said",
    [
        ("Dr. Łukasz left.", "Doctor Wookash left."),
        ("łukasz", "łukasz"),  # the entry has a capital
        ("a GIF, a gif, a Gif's", "a jif, a jif, a jif's"),
        ("gifs, gif-like", "gifs, jif-like"),  # whole words only
        ("GIF89a gif89a", "old jif gif eighty-nine a"),
        ("New York, New  York's", "Big Apple, Big Apple's"),
        ("new york", "new york"),
        ("in C++ or 1e3", "in see plus or kilo"),
        ("**gif**", "jif"),
    ],
)
def test_lexicon_wins(written, said):
    assert spoken(written, lexicon=LEXICON) == said


def test_longest_entry_wins_over_rules():
    lexicon = {"St.": "sent", "St. John": "Sinjun", "IBM": "Big Blue", "$5": "a fiver", "’tis": "it is"}
    assert spoken("St. John of IBM, St. Ray, $5, 'tis",
        lexicon=lexicon) == "Sinjun of Big Blue, sent Ray, a fiver, it is"


def test_lexicon_words_are_not_said_again():
    assert spoken("gif", lexicon={"gif": "Dr. 5 & zqxazq"}) == "Dr. 5 & zqxazq"
    assert spoken("zqxazq gif", lexicon={"gif": "jif"}) == "zqxazq jif"


def test_large_lexicon_takes_linear_time():
    lexicon = {f"word{i}": f"said {i}" for i in range(20_000)} | {"(": "open", "a b": "x"}
    said = assert_linear(lambda text: say_block(text, TextOptions(lexicon=lexicon)), "a ( word77 " * 3000)
    assert said.count("said 77") == 3000


@pytest.mark.parametrize("entries, message", [(["a"], "not be a list"), ({"a": 1}, "'a': 1"), ({" ": "x"},
    "' ': 'x'")])
def test_impossible_lexicons_are_refused(entries, message):
    with pytest.raises(OptionError, match=message):
        Lexicon(entries)


def test_lexicon_file(tmp_path):
    path = tmp_path / "names.tsv"
    path.write_bytes("\ufeff# names\r\nŁukasz\tWookash\r\n\r\n  New York \t Big Apple \r\n".encode())
    assert read_lexicon(path) == {"Łukasz": "Wookash", "New York": "Big Apple"}
    path.write_text("a\tb\nno tab here\n", encoding="utf-8")
    with pytest.raises(TextError, match="line 2: 'no tab here' has to be a word, a tab and how the word is said"):
        read_lexicon(path)
    for line in ("a\t", "\tb", "a\tb\tc"):
        path.write_text(line, encoding="utf-8")
        with pytest.raises(TextError, match="line 1"):
            read_lexicon(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OptionError, match="isn't UTF-8"):
        read_lexicon(path)
    with pytest.raises(OptionError, match="can't read .*No such file"):
        read_lexicon(tmp_path / "none.tsv")


def test_languages_are_registered_by_name():
    register_language("de", lambda text: text.replace("&", "und").replace("5", "fünf"))
    try:
        assert spoken("Brot & 5 gif", "DE", lexicon={"gif": "Bild"}) == "Brot und fünf Bild"
        assert prepare_text("5 Cafés", LATIN, TextOptions(language="de")).text == "fünf Cafés"
    finally:
        del LANGUAGES["de"]
    with pytest.raises(OptionError, match="language 'de' is unknown; known are en, en-US, en-GB"):
        spoken("x", "de")
    for name in ("", "a b", 5, "x" * 40):
        with pytest.raises(OptionError, match="isn't a name"):
            register_language(name, str)
    with pytest.raises(OptionError, match="has to be a function"):
        register_language("fr", None)


@pytest.mark.parametrize("language", ["en", "EN", "en-US", "en_GB", "en-AU"])
def test_regions_of_english_are_known(language):
    assert spoken("5 & 6", language) == "five and six"


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(language="xx"), "language 'xx' is unknown"),
        (dict(language=None), "language None is unknown"),
        (dict(strict=1), "strict has to be true or false, not 1"),
        (dict(emoji="yes"), "emoji has to be true or false, not 'yes'"),
        (dict(lexicon=["a"]), "has to map words"),
    ],
)
def test_options_are_checked(values, message):
    with pytest.raises(OptionError, match=message):
        TextOptions(**values)


def test_a_language_without_rules_is_used_as_written():
    assert TextOptions(spoken=False, language="xx").language == "xx"
