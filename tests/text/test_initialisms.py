"Words in capitals: letters, words, or only loud."

import pytest
from helpers import assert_linear

from metavoice.text.initialisms import INITIALISM_RULES, is_pronounceable, say_capitals, shouted_spans
from metavoice.text.rules import apply_rules


def say(text):
    return apply_rules(text, INITIALISM_RULES)


@pytest.mark.parametrize("word", "nato ikea stop shouting chapter strength unicef amazing opec".split())
def test_pronounceable(word):
    assert is_pronounceable(word)


@pytest.mark.parametrize("word", "fbi bbc hdmi espn nypd jpeg xkcd ieee hm aaa b".split())
def test_unpronounceable_or_spelled(word):
    assert not is_pronounceable(word) or say_capitals(word.upper()) == " ".join(word.upper())


@pytest.mark.parametrize("word",
    "IBM FBI BBC USA UK EU HTML URL CEO DVD CPU USB XML ESPN HDMI UCLA ASAP DNA ATM VIP".split())
def test_spelled(word):
    assert say(f"the {word} is") == f"the {' '.join(word)} is"
    assert say(f"two {word}s") == f"two {' '.join(word)}'s"
    assert say(f"the {word}'s end") == f"the {' '.join(word)}'s end"


@pytest.mark.parametrize("word", "NASA NATO UNESCO AIDS RAM PIN SIM UNICEF OPEC COVID".split())
def test_said_as_a_word(word):
    assert say(f"the {word}'s end").lower() == f"the {word}'s end".lower()


@pytest.mark.parametrize(
    "written, said",
    [
        ("he said STOP and NO", "he said stop and no"),
        ("STOP! NOW", "Stop! Now"),
        ("I AM NOT SHOUTING. I SAID SO.", "I am not shouting. I said so."),
        ("THE END", "The end"),
        ("I CAN'T, YOU'RE ALL I'VE GOT", "I can't, you're all I've got"),
        ("O'BRIEN'S BAR", "O'brien's bar"),
        ("THE FBI SAID NO TO THE CIA", "The F B I said no to the C I A"),
        ("IBM, FBI", "I B M, F B I"),
        ("the US and us, IT and it", "the U S and us, I T and it"),
        ("TELL US ABOUT IT", "Tell us about it"),
        ("US STOCKS FALL", "U S stocks fall"),
        ("I, A and B", "I, A and B"),
        ("OK. Ok, ok", "Okay. Okay, ok"),
        ("a pdf, two urls, the usb-stick", "a P D F, two U R L's, the U S B-stick"),
        ("CAFÉ Été", "CAFÉ Été"),
    ],
)
def test_context_decides(written, said):
    assert say(written) == said
    assert say(said) == said


def test_shouted_spans():
    text = "He said I AM HERE to IBM NATO."
    assert [text[start:end] for start, end in shouted_spans(text)] == ["I AM HERE"]


@pytest.mark.parametrize("unit", ["A", "A ", "AB ", "STOP ", "A'", "I'M ", "AB's ", "ABs ", ". ", "pdf ", "'", "A!"])
def test_time_is_linear(unit):
    assert_linear(say, unit * (100_000 // len(unit)))
