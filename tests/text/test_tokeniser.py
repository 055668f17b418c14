"Tokeniser: golden ids and normalisation, Unicode's corner cases, and training."

import copy
import pickle
import random
import time
import unicodedata

import pytest
import torch
from helpers import assert_linear, slowness

from metavoice.core.errors import BundleError, OptionError, TextError
from metavoice.core.layout import TokenLayout
from metavoice.text.tokeniser import SPLIT_PATTERN, Tokeniser, check_text, normalise


@pytest.fixture(scope="module")
def metas(golden):
    "The tokenisers of both stages of a checkpoint in the released format."
    return {
        stage: torch.load(golden / f"{stage}_stage.pt", weights_only=True, map_location='cpu')['meta']['tokenizer']
        for stage in ('first', 'second')
    }


@pytest.fixture(scope="module")
def bytewise():
    return Tokeniser({bytes([b]): b for b in range(256)}, SPLIT_PATTERN)


def random_sentences(rng, n):
    vocabulary = [''.join(rng.choices('etaoinshrdlu', k=rng.randint(1, 9))) for _ in range(5000)]
    return [' '.join(rng.choices(vocabulary, k=8)).capitalize() + '.' for _ in range(n)]


# golden
@pytest.mark.parametrize(
    "stage, offset", [('first', TokenLayout().text_offset), ('second', TokenLayout().second_text_offset)]
)
def test_golden_tokenise(metas, expected_json, stage, offset):
    tokeniser = Tokeniser.from_meta(metas[stage])
    assert offset == metas[stage]['offset'] and tokeniser.end_of_text == TokenLayout().text_ranks
    for tokeniser in (tokeniser, Tokeniser.from_json(tokeniser.to_json())):
        for case in expected_json['tokenise']:
            assert [i + offset for i in tokeniser.encode(case['text'])] == case[stage]
            assert tokeniser.decode(tokeniser.encode(case['text'])) == case['text']


def test_golden_normalise(expected_json):
    for case in expected_json['normalise']:
        assert normalise(case['text']) == case['out']


def test_golden_rejects(expected_json):
    for text in expected_json['normalise_rejects']:
        with pytest.raises(ValueError, match="outside the tokeniser"):
            normalise(text)


# normalising
@pytest.mark.parametrize(
    "text, out",
    [
        ("cafe\u0301", "café"),
        ("A\u030angstro\u0308m", "Ångström"),
        ("\u212bngstr\u00f6m", "Ångström"),  # composed
        ("zero\u200bwidth\ufeff soft\xadhyphen\u200e\u2060", "zerowidth softhyphen"),  # invisible
        ("nb\xa0space\u2003em\u3000wide\u2028line\x0b\x0cfeed\x85", "nb space em wide line feed"),  # white space
        ("Acme\u2122", "AcmeTM"),
        ("o\ufb03ce", "office"),
        ("\uff21\uff22", "AB"),
        ("\u2160\u2164", "IV"),
        ("**bold**", "bold"),
        ("½ © £5 ñ ß", "½ © £5 ñ ß"),
        ("©\ufe0f", "©"),
        ("", ""),
        ("\u2010", "-"),
        ("5 \u2212 3", "5 - 3"),
    ],
)
def test_normalise(text, out):
    assert normalise(text) == out and normalise(out) == out


@pytest.mark.parametrize(
    "text, character, position",
    [
        ("smile 😀", "U+1F600, GRINNING FACE", 6),
        ("x\u0301", "U+0301, COMBINING ACUTE ACCENT", 1),
        ("cafe\u0301 ক", "U+0995", 6),
        ("tab\x00", "U+0000, a control character", 3),
        ("a\x1b[1m", "U+001B", 1),
        ("\x93quoted\x94", "U+0093", 0),
        ("x\ud83d", "U+D83D", 1),
        ("2⁵", "U+2075", 1),
        ("5 €", "U+20AC", 2),
        ("\u200b\u200bŁ", "U+0141", 2),
        ("a\ue000", "U+E000, without a name", 1),
        ("  \tω", "U+03C9", 3),
    ],
)
def test_outside_is_named_with_its_position(text, character, position):
    with pytest.raises(TextError) as e:
        check_text(text)
    message = str(e.value)
    assert character in message and f"at position {position}," in message
    assert '\n' not in message and message.isprintable()


@pytest.mark.parametrize("text", ["", " ", "\n\t\r", "\xa0\u3000", "\u200b\ufeff", "* *"])
def test_blank(text):
    with pytest.raises(TextError, match="the text is empty; give at least one word"):
        check_text(text)


@pytest.mark.parametrize("text", ["...", "?!", "— —", '""'])
def test_nothing_to_say(text):
    with pytest.raises(TextError, match="nothing to say"):
        check_text(text)


@pytest.mark.parametrize("text", [None, 5, b"bytes", ["list"]])
def test_not_a_string(text):
    with pytest.raises(TextError, match=f"not {type(text).__name__}"):
        check_text(text)


# the tokeniser
def test_round_trip_of_anything(metas):
    tokeniser, rng = Tokeniser.from_meta(metas['first']), random.Random(0)
    for _ in range(200):
        text = ''.join(
            chr(rng.choice([rng.randrange(32, 127), rng.randrange(0xA0, 0x2000), rng.randrange(0x1F300, 0x1F700)]))
            for _ in range(rng.randint(0, 40))
        )
        ids = tokeniser.encode(text)
        assert tokeniser.decode(ids) == text and ids[-1] == 512 and max(ids[:-1], default=0) < 512


def test_special_token_in_text_is_text(bytewise):
    assert bytewise.encode("<|endoftext|>") == [*b"<|endoftext|>", 256]


def test_decode_refuses(bytewise):
    for bad in (257, -1):
        with pytest.raises(TextError, match=f"token {bad} doesn't exist"):
            bytewise.decode([65, bad])
    assert bytewise.decode(torch.tensor([195, 169, 256])) == 'é' and bytewise.decode([195]) == '\ufffd'


def test_copies(metas):
    tokeniser = Tokeniser.from_meta(metas['first'])
    tokeniser.encode("warm")
    for other in (pickle.loads(pickle.dumps(tokeniser)), copy.deepcopy(tokeniser)):
        assert other == tokeniser and other.encode("A b") == tokeniser.encode("A b")


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(mergeable_ranks={}), "byte 0 is missing"),
        (dict(special_tokens={}), "endoftext"),
        (dict(pat_str=None), "pat_str|NoneType|str"),
        (dict(pat_str="("), "mv_tiny"),
        (dict(mergeable_ranks=None), "incomplete"),
        (dict(mergeable_ranks={bytes([b]): b + 1 for b in range(256)}), "aren't 0 to 255"),
        (dict(special_tokens={'<|endoftext|>': 3}), "id from 512"),
    ],
)
def test_broken_meta(metas, change, words):
    with pytest.raises(BundleError, match=words):
        Tokeniser.from_meta({**metas['first'], **change})


def test_broken_json(bytewise):
    whole = bytewise.to_json()
    for text in ('', 'null', '[1]', '{}', whole[:-40], whole.replace('"00"', '"zz"'), whole.replace('"00"', '"01"')):
        with pytest.raises(BundleError):
            Tokeniser.from_json(text)


# training
def test_training_does_not_depend_on_the_order():
    texts = random_sentences(random.Random(1), 3000)
    tokeniser = Tokeniser.train(texts)
    shuffled = texts[::-1]
    assert Tokeniser.train(shuffled).mergeable_ranks == tokeniser.mergeable_ranks
    assert tokeniser.end_of_text == 512 and all(tokeniser.decode(tokeniser.encode(t)) == t for t in texts[:500])


@pytest.mark.slow
def test_training_on_20000_sentences():
    texts = random_sentences(random.Random(1), 20_000)
    start = time.process_time()
    tokeniser = Tokeniser.train(texts)
    assert time.process_time() - start < 60 * slowness()
    shuffled = texts[::-1]
    assert Tokeniser.train(shuffled).mergeable_ranks == tokeniser.mergeable_ranks
    assert tokeniser.end_of_text == 512 and all(tokeniser.decode(tokeniser.encode(t)) == t for t in texts[:500])


@pytest.mark.parametrize(
    "texts",
    [
        ["שלום עולם, מה שלומך היום?"] * 3,
        ["今天天气很好，我们去公园。今天很好。"],
        ["यह एक छोटी कहानी है और कहानी सच्ची है।"],
        ["Ещё одна история, ещё один день."],
    ],
)
def test_train_in_any_language(texts):
    tokeniser = Tokeniser.train(texts, n_ranks=262)
    for text in texts:
        assert tokeniser.decode(tokeniser.encode(tokeniser.check_text(text))) == text
    with pytest.raises(TextError, match="'Q'.*position 0"):
        tokeniser.check_text('Q')
    assert Tokeniser.from_json(tokeniser.to_json()) == tokeniser


def test_own_alphabet_with_ascii_replacements():
    tokeniser = Tokeniser.train(["plain letters, 'quoted' - and dashed"], n_ranks=258)
    assert tokeniser.normalise("‘pla\u00adin’ —\nletters") == "'plain' - letters"
    with pytest.raises(TextError, match="U\\+201C"):
        tokeniser.normalise("“plain”")


def test_train_refuses():
    with pytest.raises(TextError, match="1 texts are too little for 512 ranks"):
        Tokeniser.train(["hello"])
    with pytest.raises(TextError, match="too little"):
        Tokeniser.train([])
    with pytest.raises(OptionError, match="n_ranks 255"):
        Tokeniser.train(["hello"], n_ranks=255)
    with pytest.raises(TextError, match="control character"):
        Tokeniser.train(["he\x00llo"], n_ranks=257)


# fitting
NANO = "!',-.:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def nano(bytewise):
    "A tokeniser with the alphabet of the nano bundle."
    return Tokeniser(bytewise.mergeable_ranks, SPLIT_PATTERN, alphabet=NANO)


@pytest.mark.parametrize(
    "text, out",
    [
        ("“Come in,” she said.", "Come in, she said."),
        ('She said "come in".', "She said come in."),
        ("The dog (a big one) slept.", "The dog a big one slept."),
        ("café naïve Zoë Ångström cafe\u0301", "cafe naive Zoe Angstrom cafe"),
        ("Straße ẞ Æsop œuvre Øre Łódź đ þorn Ðe ıŋħ", "Strasse SS Aesop oeuvre Ore Lodz d thorn The ingh"),
        ("o\ufb03ce \uff21\uff22 \u2160V", "office AB IV"),
        ("Well… so— no – yes ‐ ‑", "Well... so- no - yes - -"),
        ("Ja。Nein、 so！ ok？ ¿que? ¡no!", "Ja. Nein, so! ok? que? no!"),
        ("zero\u200bwidth\ufeff soft\xadhyphen\u200e\u2060\ufe0f", "zerowidth softhyphen"),
        ("tab\x00bed \x1b[1m\x93q\x94", "tab bed m q"),
        ("snake_case * star | bar • dot", "snake case star bar dot"),
        ("x\u0301 y\u0302\u0323", "x y"),
        ("nb\xa0space\u2003em\u2028line\n\n", "nb space em line"),
        ("“”", ""),
        ("", ""),
    ],
)
def test_fit(nano, text, out):
    fitted, left_out = nano.fit(text)
    assert fitted == out and nano.fit(fitted) == (fitted, [])
    assert set(left_out) <= set("1") and nano.normalise(fitted) == fitted


@pytest.mark.parametrize(
    "text, out, left_out",
    [
        ("Good morning 😀!", "Good morning!", ["😀"]),
        ("It is 5 €, or 55 €.", "It is, or.", ["5", "€"]),
        ("and/or", "and or", ["/"]),
        ("Привет, world", ", world", [*"Привет"]),
        ("हिन्दी", "", ["ह", "ि", "न", "्", "द", "ी"]),
        ("2⁵ ½", "", ["2", "⁵", "½"]),
        ("x\ud83dy \ue000", "x y", ["\ud83d", "\ue000"]),
    ],
)
def test_fit_returns_what_it_leaves_out(nano, text, out, left_out):
    assert nano.fit(text) == (out, left_out)
    with pytest.raises(TextError, match=f"U\\+{ord(left_out[0]):04X}.*at position {text.index(left_out[0])},"):
        nano.fit(text, strict=True)


def test_fit_keeps_what_is_asked_for(nano):
    assert nano.fit("“Café”, [he] said", keep='"') == ('"Cafe", he said', [])
    assert nano.fit("“Café” „5“", keep='"5')[0] == '"Cafe" ,,5"'


def test_fit_keeps_what_the_alphabet_has(bytewise):
    assert bytewise.fit("“Café” — ½ (Łódź)… ¿5 €?") == ('"Café" - ½ (Lódz)... ¿5?', ["€"])
    hindi = Tokeniser.train(["यह एक छोटी कहानी है और कहानी सच्ची है।"], n_ranks=262)
    assert hindi.fit("कहानी सच्ची है। ok") == ("कहानी सच्ची है।", ["o", "k"])
    capitals = Tokeniser(bytewise.mergeable_ranks, SPLIT_PATTERN, alphabet="ABC,")
    assert capitals.fit("ab—c; “é”") == ("AB,C,", ["é"])


def test_fit_equals_normalise_where_that_works(metas, expected_json):
    tokeniser = Tokeniser.from_meta(metas['first'])
    for case in expected_json['normalise']:
        assert tokeniser.fit(case['text']) == (tokeniser.normalise(case['text']), [])


def test_fit_takes_any_text(nano, bytewise):
    rng = random.Random(3)
    for tokeniser in (nano, bytewise):
        for _ in range(300):
            text = ''.join(chr(rng.choice([rng.randrange(0x3000), rng.randrange(0x110000)])) for _ in range(50))
            fitted, left_out = tokeniser.fit(text)
            composed = unicodedata.normalize("NFC", text)
            assert tokeniser.normalise(fitted) == fitted and set(left_out) <= {*text, *composed}
    with pytest.raises(TextError, match="not bytes"):
        nano.fit(b"x")


@pytest.mark.parametrize("unit", ["…", "“", "\u0301\u0323", "é", "😀", "—", "\u1161", "ﷺ", "\x00"])
def test_fit_is_linear(nano, unit):
    text = "a" + unit * (100_000 // len(unit))
    assert_linear(nano.fit, text)
