"Words to phonemes: both accents, odd texts, bounded time, threads, and no hibari."
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import assert_linear

import metavoice.text.phonemizer as module
from metavoice.core.errors import OptionError
from metavoice.text.phonemizer import (
    ACCENTS,
    MAX_PIECE,
    SYMBOLS,
    HibariPhonemizer,
    NetworkPhonemizer,
    default_phonemizer,
    is_pronounceable,
    phonemizer_pieces,
    tidy_phonemes,
)
from metavoice.text.spoken import spoken

ROOT = Path(__file__).parents[2]
ODD = ["", " ", "...", "'", "-", "\x00", "世界", "🙂", "ˈ", "[a](/b/)", "9" * 5000, "((", "A" * 3000, "'s", "s's's's",
       "a\u0301", "\ud83d", "x-", "-x-y-", "...a", "?!?", "$5", "1,2", "e\u200de", "ﬁ"]  # fmt: skip


@pytest.fixture(scope="module")
def hibari():
    pytest.importorskip("hibari")
    return HibariPhonemizer()


@pytest.fixture(scope="module")
def network():
    return NetworkPhonemizer()


@pytest.mark.parametrize("text, american, british", [
    ("The red book.", "ðə ɹˈɛd bˈʊk.", "ðə ɹˈɛd bˈʊk."), ("a bath", "ɐ bˈæθ", "ɐ bˈɑːθ"),
    ("bone", "bˈOn", "bˈQn"), ("butter", "bˈʌTəɹ", "bˈʌtə"), ("He's read it; I can't read.", None, None),
    ("U S A", "jˈu ˈɛs ˈA", "jˈuː ˈɛs ˈA"), ("plan A, a plan", "plˈæn ˈA, ɐ plˈæn", "plˈan ˈA, ɐ plˈan"),
    ("Shh!", "ʃː!", "ʃː!"), ("X Y Z.", "ˈɛks wˈI zˈi.", "ˈɛks wˈI zˈɛd."),
    ("'Tis Zoe's", "tˈɪz zˈOiz", "tˈɪz zˈQiz"), ("twenty-four", "twˈɛntifˌɔɹ", "twˈɛntifˌɔː"),
])  # fmt: skip
def test_words(hibari, text, american, british):
    if american:
        assert [hibari(text, accent) for accent in ACCENTS] == [american, british]
    else:
        assert hibari(text).count("ɹˈɛd") == hibari(text).count("ɹˈid") == 1


def test_what_spoken_says(hibari):
    said = hibari(spoken("Henry VIII paid $5 to IBM at 5 p.m., see www.example.com.")).split()
    words = "hˈɛnɹi ði ˈAθ".split()
    assert said[:3] == words and "dˈɑləɹz" in said and "ˈɛm," in said and "kˈɑm." in said[-1:]


@pytest.mark.parametrize("text", ODD, ids=lambda text: ascii(text[:9]))
@pytest.mark.parametrize("kind", ["hibari", "network"])
def test_odd_texts(request, kind, text):
    phonemize = request.getfixturevalue(kind)
    for accent in ACCENTS:
        for context in (text, f"Say {text} now.", f"{text}, {text}"):
            said = phonemize(context, accent)
            assert SYMBOLS.issuperset(said) and said == said.strip() and "  " not in said


def test_random_texts(hibari, network):
    rng, bits = random.Random(1), [*ODD, "word", "Nguyen's", "I", "O'Neill", "don't", "e-mail", "'em", "NASA"]
    for _ in range(150):
        text = "".join(rng.choice(bits)[:300] + rng.choice(["", " ", ", "]) for _ in range(rng.randint(1, 9)))
        for phonemize in (hibari, network):
            assert SYMBOLS.issuperset(phonemize(text, rng.choice(ACCENTS)))


@pytest.mark.parametrize("bit", ["(", '"a', "321 ", "a.", "word ", "ab", "'", "a-", ". ", "Mr. ", "U.S."])
def test_time_is_linear(hibari, bit):
    assert_linear(hibari, (bit * 50_000)[:50_000])


def test_punctuation_stays(hibari, network):
    for phonemize in (hibari, network):
        said = phonemize("Well, yes; no: maybe! Why? So...")
        assert [c for c in said if c in ",;:!?."] == [*",;:!?..."]
        assert " ," not in said and " !" not in said


def test_a_sentence_is_phonemised_once(monkeypatch):
    pytest.importorskip("hibari")
    phonemize, calls = HibariPhonemizer(), []
    monkeypatch.setattr(phonemize.reader("american"), "tokenize", lambda text: calls.append(text) or [])
    for _ in range(3):
        phonemize("It rained. He ran.")
    assert calls == ["It rained.", "He ran."]


def test_threads(hibari):
    texts = [f"The {word} dog and Mr. Zqx{word}." for word in "one two three four five six seven eight".split()]
    expected, found, fresh = [hibari(text) for text in texts], {}, HibariPhonemizer()

    def say(n):
        found[n] = [fresh(text) for text in texts]

    threads = [threading.Thread(target=say, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[n] == expected for n in range(4))


def test_a_failing_package_is_replaced(monkeypatch, caplog):
    pytest.importorskip("hibari")
    phonemize = HibariPhonemizer()

    def fail(text):
        raise StopIteration

    monkeypatch.setattr(phonemize.reader("american"), "tokenize", fail)
    assert phonemize("The dog!") == NetworkPhonemizer()("The dog!") != ""
    assert "hibari can't say 'The dog!'" in caplog.text


def test_an_impossible_answer_for_an_unknown_word_is_replaced(hibari, monkeypatch):
    monkeypatch.setitem(hibari._networks, "american", lambda word: "ɛɛkzˈ")
    assert is_pronounceable(hibari.say_unknown("zorblat", "american"))
    monkeypatch.setitem(hibari._networks, "american", lambda word: None)
    assert hibari.say_unknown("zorblat", "american")


def test_unknown_accents(hibari, network):
    for phonemize in (hibari, network):
        with pytest.raises(OptionError, match="accent is 'welsh'; use american or british"):
            phonemize("Hello.", "welsh")


def test_pieces():
    text = "One two. Three! " + "Word " * 300 + "y" * 500
    pieces = phonemizer_pieces(text)
    assert pieces[:2] == ["One two.", "Three!"] and max(map(len, pieces)) <= MAX_PIECE
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_tidy():
    assert tidy_phonemes(" a   b , (en)ɾ") == "a b, T"


def test_without_hibari(monkeypatch):
    monkeypatch.setattr(module, "import_hibari", lambda: (_ for _ in ()).throw(ImportError("No module named 'hibari'")))
    with pytest.raises(OptionError, match="pip install hibari-tts"):
        HibariPhonemizer()


def test_a_process_without_hibari_has_phonemes():
    code = (
        "import sys\nsys.modules['hibari'] = None\n"
        "from metavoice.text.phonemizer import default_phonemizer\n"
        "say = default_phonemizer()\nprint(type(say).__name__, say('The old man.'), say('The old man.', 'british'))\n"
        "assert 'torch' not in sys.modules and 'onnxruntime' not in sys.modules\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, encoding="utf-8")
    assert ran.stdout.split() == "NetworkPhonemizer ði ˈOld mˈæn. ði ˈQld mˈan.".split(), ran.stderr
    assert "hibari-tts" in ran.stderr


def test_the_default_is_made_once():
    assert default_phonemizer() is default_phonemizer()


def test_import_is_light():
    code = "import sys, metavoice.text.phoneme_tokeniser as m; assert not {'torch', 'hibari'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
