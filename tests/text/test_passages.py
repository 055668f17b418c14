"Thirty pages of novels, chats and news, and 733 pairs, each written with what a reader says."
import re
import unicodedata
from pathlib import Path

import pytest

from metavoice.text.spoken import TextOptions, prepare_text, spoken
from metavoice.text.tokeniser import SPLIT_PATTERN, Tokeniser

FOLDER = Path(__file__).with_name("passages")
BYTES = {bytes([b]): b for b in range(256)}
NANO = Tokeniser(BYTES, SPLIT_PATTERN, alphabet="!',-.:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
LATIN = Tokeniser(BYTES, SPLIT_PATTERN)
LOCALES = dict(line.split("\t") for line in (FOLDER / "locales.tsv").read_text(encoding="utf-8").splitlines())

# Where the words differ as a matter of taste: what the readers' text has, and what the rules say.
ACCEPTED = {
    "news_06": [("one pound forty four", "one pound and forty four pence")],
    "news_09": [("fifteen hundred metres", "one thousand five hundred metres"), ("nought point", "zero point")],
}


def words(text):
    "Return the words of a text in small letters without accents; D V D's is D V Ds."
    text = NANO.fit(unicodedata.normalize("NFC", text.lower()).replace("’", "'"))[0]
    text = re.sub(r"(?<!\w)(\w)'s(?!\w)", r"\1s", text)
    return [word.strip("'") for word in re.findall(r"[\w']+", text) if word.strip("'")]


@pytest.mark.parametrize("tokeniser", [NANO, LATIN], ids=["nano", "latin"])
@pytest.mark.parametrize("name", LOCALES)
def test_passages_are_read_as_a_reader_says_them(name, tokeniser):
    prepared = prepare_text(
        (FOLDER / f"{name}.txt").read_text(encoding="utf-8"), tokeniser, TextOptions(language=LOCALES[name])
    )
    expected = " ".join(words((FOLDER / f"{name}.said").read_text(encoding="utf-8")))
    for readers, ours in ACCEPTED.get(name, ()):
        assert readers in expected, "an accepted difference is gone"
        expected = expected.replace(readers, ours)
    assert prepared.left_out == () and "".join(words(prepared.text)) == expected.replace(" ", "")


@pytest.mark.parametrize("file", ["held.tsv", "held_2.tsv"])
def test_pairs_written_without_the_rules(file):
    lines = Path(__file__).with_name(file).read_text(encoding="utf-8").splitlines()
    wrong = []
    for line in lines:
        kind, language, written, *said = line.split("\t")
        choices = [said[0], *(said[1].split(" | ") if len(said) > 1 else ())]
        ours = spoken(written.replace("\\n", "\n"), language)
        if "".join(words(ours)) not in {"".join(words(choice)) for choice in choices}:
            wrong.append((kind, written, ours))
    assert len(lines) > 320 and len(wrong) <= 0.02 * len(lines), wrong
