"Titles, roads, states, words cut short and initials are said in words, and a full stop that ends a sentence stays."
import re

import pytest
from helpers import assert_linear

from metavoice.text.abbreviations import ABBREVIATION_RULES, STATES, TITLES, closes_sentence
from metavoice.text.rules import apply_rules


def say(text):
    return apply_rules(text, ABBREVIATION_RULES)


@pytest.mark.parametrize(
    "text, closes",
    [
        ("in the U.S.", True), ('in the U.S."', True), ('the U.S." He left', True), ("the U.S. (It left)", True),
        ("the U.S. Army", False), ("the U.S. and", False), ("the U.S., and", False), ("the U.S.?", False),
        ("the U.S. I went", True), ("the U.S. IBM", False), ("the U.S. F.B.I.", False),
    ],
)
def test_full_stop_may_end_the_sentence(text, closes):
    assert closes_sentence(re.search(r"U\.S\.", text)) is closes


@pytest.mark.parametrize("title", [title for title in TITLES if title not in ("mr", "mrs", "ms")])
def test_every_title_is_said_before_a_name(title):
    assert say(f"{title.capitalize()}. Brown came.") == f"{TITLES[title]} Brown came."


@pytest.mark.parametrize("code", [code for code in STATES if code != "DC"])
def test_every_state_is_said_behind_a_city(code):
    assert say(f"Salem, {code} 01234") == f"Salem, {STATES[code]} 0 1 2 3 4"
    assert say(f"the {code} team") == f"the {code} team"


@pytest.mark.parametrize(
    "written, said",
    [
        ("Ask Dr. Ray on Elm Dr. Ray lives there.", "Ask Doctor Ray on Elm Drive Ray lives there."),
        ("the doctor, Dr. May, of 5 Bay Dr., Reno", "the doctor, Doctor May, of 5 Bay Drive, Reno"),
        ("Mr. St. John, East St. Louis, 5th St. Bridge", "Mister Saint John, East Saint Louis, 5th Street Bridge"),
        ("Saints: St. Mary. Streets: High St.", "Saints: Saint Mary. Streets: High Street."),
        ("a 5 st. weight", "a 5 st. weight"),
        ("He is No. 1. No. Is he?", "He is Number 1. No. Is he?"),
        ("Nos. 1 and 2; no.3", "Numbers 1 and 2; number 3"),
        ("I say no. Then go.", "I say no. Then go."),
        ("my ex. He is in art. Then", "my ex. He is in art. Then"),
        ("Max. Then Ed. Then est.", "Max. Then Ed. Then est."),
        ("etc. And etc., and etc. and etc.", "et cetera. And et cetera, and et cetera and et cetera."),
        ("So do I. Bob left. A. Smith", "So do I. Bob left. A Smith"),
        ("Hepatitis C. Doctors; plan B. Now", "Hepatitis C. Doctors; plan B. Now"),
        ("the F B I. Agents", "the F B I. Agents"),
        ("U.S.A, U.S, J.R.R. Tolkien", "U S A, U S, J R R Tolkien"),
        ("at 5 p.m. and 300 B.C. in A.D. 5", "at 5 p.m. and 300 B.C. in A.D. 5"),
        ("Sat. at five, the Sat. He sat.", "Saturday at five, the Sat. He sat."),
        ("Smith & Co. and co. with", "Smith & Company and co. with"),
        ("W. Virginia, 5 W. Main St., 5 W lamp", "West Virginia, 5 West Main Street, 5 W lamp"),
        ("Ph.D., PhDs, M.D.s, M.Sc.", "P H D, P H D's, M D's, M S C."),
        ("The Revd. Smith, Mt Doom, Ft Knox", "The Revd. Smith, Mount Doom, Fort Knox"),
    ],
)
def test_context_decides(written, said):
    assert say(written) == said


@pytest.mark.parametrize("unit", [".", "A.", "a.", "Dr. ", "St. ", "A St. ", "No. ", "U.S. ", "1st St. ", "& Co. ",
    "A, AL ", "w/"])
def test_time_is_linear(unit):
    assert_linear(say, unit * (100_000 // len(unit)))
