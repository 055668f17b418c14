"Plain characters, emoji, symbols, brackets and punctuation."
import random
import unicodedata

import pytest
from helpers import assert_linear

from metavoice.text.rules import apply_rules
from metavoice.text.symbols import (
    EMOJI_NAMES,
    MARK_RULES,
    SIGNS,
    SYMBOL_RULES,
    clean_characters,
    name_emoji,
    replace_emoji,
    tidy_punctuation,
)


def say(text):
    return tidy_punctuation(apply_rules(clean_characters(replace_emoji(text)), [*MARK_RULES, *SYMBOL_RULES]))


@pytest.mark.parametrize(
    "written, plain",
    [
        ("“a” „b“ «c» ‘d’ ``e''", '"a" "b" "c" \'d\' "e"'),
        ("𝐁𝐨𝐥𝐝 𝓢𝓬 𝔸 Ｆｕｌｌ１", "Bold Sc A Full1"),
        ("ﬁne, ﬂat, Ⅳ, H₂O", "fine, flat, IV, H2O"),
        ("cafe\u0301 Zoë", "café Zoë"),
        ("a\u200bb\u00adc\ufeffd\u2060e", "abcde"),
        ("x²y½№µ…", "x²y½№µ…"),
        ("1\u00a0000\u00a0km", "1\u00a0000 km"),
        ("a\t b\u2003c\nd", "a b c d"),
        ("क्\u200dष می\u200cخواهم", "क्\u200dष می\u200cخواهم"),  # joiners that belong to their scripts
        ("a\x00b\x07", "ab"),
    ],
)
def test_characters(written, plain):
    assert clean_characters(written) == plain
    assert clean_characters(plain) == plain


EMOJI = "😀 👍🏽 👨‍👩‍👧‍👦 🇬🇧 🏳️‍🌈 👩🏾‍💻 ❤️ ⚠️ ✅ ⭐ ☕ ✓ ⌚ 🫠 :-) ;) <3".split()


@pytest.mark.parametrize("emoji", EMOJI)
def test_emoji_are_left_out_or_named(emoji):
    assert say(f"Well {emoji} yes.") == "Well yes."
    named = replace_emoji(f"Well {emoji} yes.", named=True)
    assert emoji not in named and any(c.isalpha() for c in named.split(",")[1])


@pytest.mark.parametrize(
    "emoji, name",
    [("😀", "grinning face"), ("👍🏿", "thumbs up"), ("👨‍👩‍👧", "family"), ("🇫🇷", "flag F R"), ("🚀", "rocket"), ("❤️",
    "red heart")],
)
def test_names(emoji, name):
    assert name_emoji(emoji) == name


def test_keycaps_are_digits():
    assert clean_characters(replace_emoji("1️⃣ and 2️⃣")) == "1 and 2"


@pytest.mark.parametrize("sign", [sign for sign in SIGNS if SIGNS[sign] and sign not in ("->", "<-", "<->", "=>")])
def test_every_sign_is_said(sign):
    said = say(f"one {sign} two")
    assert sign not in said and said.startswith("one ") and said.endswith(" two") and len(said.split()) > 2, said


@pytest.mark.parametrize(
    "written, said",
    [
        ("The dog (a big one) slept.", "The dog, a big one, slept."),
        ("(All of it.) Then [this] came {so}.", "All of it. Then, this, came, so."),
        ("a (b (c) d) e", "a, b, c, d, e"),
        ("He left (again)!", "He left, again!"),
        ("word—word – word -- word - word", "word, word, word, word, word"),
        ('"But I—" he said. "No—"', '"But I..." he said. "No..."'),
        ("It ended—", "It ended..."),
        ("— Yes, he said.", "Yes, he said."),
        ("well-known, twenty-one", "well-known, twenty-one"),
        ("What?! No!!! So.... Hm . . . yes", "What? No! So... Hm... yes"),
        ("a ,b ;c :d", "a, b; c: d"),
        ("R & D, B&B, M&Ms", "R and D, B and B, M and M's"),
        ("and/or, He/she, TCP/IP, in/out", "and or, He or she, TCP IP, in slash out"),
        ("x < y > z, x^n", "x is less than y is greater than z, x to the power of n"),
        ("α→β, Москва, Ελλάδα", "alpha to beta, Москва, Ελλάδα"),
        ("A–Z, Mon–Fri, London–Paris", "A to Z, Monday to Friday, London-Paris"),
        ("note.[3] Word² but m²", "note. Word but m squared"),
        ("*a* _b_ ~~c~~ |d| #", "a b c, d"),
        ("™®†‡*", ""),
        ('"😀" he wrote', "he wrote"),
        ('"a" "b"', '"a" "b"'),
        ("'tis o'clock rock'n'roll", "'tis o'clock rock 'n' roll"),
        ("soooo good, hmm", "soooo good, hmm"),
        ("os.path.join is", "os dot path dot join is"),
        ("B.C. and 5 p.m. He", "B C and 5 P M. He"),
        ("ibid., p", "ibid, p"),
    ],
)
def test_symbols(written, said):
    assert say(written) == said
    assert say(said) == said


def test_tidying_twice_changes_nothing():
    rng = random.Random(1)
    for _ in range(3000):
        text = "".join(rng.choices("ab .,;:!?-—–…\"'", k=rng.randint(1, 20)))
        once = tidy_punctuation(text)
        assert tidy_punctuation(once) == once, (text, once)


def test_every_named_emoji_is_an_emoji():
    assert all(replace_emoji(emoji).strip() == "" and unicodedata.name(emoji) for emoji in EMOJI_NAMES)


@pytest.mark.parametrize(
    "unit",
    [
        "(", ")", "((a))", '"', '"a")', ".", ". ", "-", "– ", "—", "!?", ",", ", ", "a,", " ", "~", "<", "²",
        "\U0001f600", "\U0001f1eb", "\U0001f468\u200d",
    ],
)
def test_time_is_linear(unit):
    assert_linear(say, unit * (100_000 // len(unit)))
