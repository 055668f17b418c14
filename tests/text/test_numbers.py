"Numbers as they are written and said, in American and British English."
import re

import pytest
from helpers import assert_linear, split_pairs

from metavoice.text.dates import DATE_RULES
from metavoice.text.numbers import NUMBER_RULES, PARTS, cardinal, decade, ordinal, roman, say_number, year
from metavoice.text.quantities import QUANTITY_RULES
from metavoice.text.rules import apply_rules, is_british, make_rule

RULES = [*DATE_RULES, *QUANTITY_RULES, *NUMBER_RULES]
SAID = """
1,234,567|one million two hundred thirty-four thousand five hundred sixty-seven
1\u2009234\u2009567 people|one million two hundred thirty-four thousand five hundred sixty-seven people
1\u00a0234 people|one thousand two hundred thirty-four people
10 000 steps|ten thousand steps
12,34,567|one million two hundred thirty-four thousand five hundred sixty-seven
2,024 votes|two thousand twenty-four votes
I have 5 apples and 12 pears.|I have five apples and twelve pears.
0|zero
It fell to −5.|It fell to minus five.
It fell to -5 (or -6).|It fell to minus five (or minus six).
a well-known 5-a-side team|a well-known five-a-side team
a 21-year-old|a twenty-one-year-old
3.14|three point one four
0.5 and .5|zero point five and point five
1,234.50|one thousand two hundred thirty-four point five zero
It was 3. Then 4.|It was three. Then four.
the 1st, 22nd, 3rd and 12th|the first, twenty-second, third and twelfth
his 100th and 1,000th|his one hundredth and one thousandth
a 2nd-hand car|a second-hand car
the 21st century|the twenty-first century
1/2|one half
3/4 of it|three quarters of it
1/3 cup|one third cup
2/3 and 5/8|two thirds and five eighths
½ cup|one half cup
2½ cups|two and a half cups
1 1/2 cups|one and a half cups
1¾|one and three quarters
open 24/7|open twenty-four seven
9/10 of them|nine tenths of them
I give it 8/10.|I give it eight out of ten.
and/or|and/or
blood pressure 120/80|blood pressure one hundred twenty over eighty
pages 12-15|pages twelve to fifteen
2–3 of them|two to three of them
5-10 minutes|five to ten minutes
5 – 10 minutes|five to ten minutes
a 9–5 job|a nine to five job
They won 3-1.|They won three to one.
2:1|two to one
a scale of 1:100|a scale of one to one hundred
3, 2, 1|three, two, one
v2.0.1|version two point zero point one
version 2.10|version two point ten
Python 3.11|Python three point eleven
iOS 17.4.1|iOS seventeen point four point one
Room 101|Room one oh one
Flight 370 and Flight 1549|Flight three seventy and Flight fifteen forty-nine
a Boeing 747|a Boeing seven forty-seven
agent 007|agent zero zero seven
4111 1111 1111 1111|four one one one, one one one one, one one one one, one one one one
Beverly Hills, CA 90210|Beverly Hills, CA nine zero two one zero
the ZIP code 90210|the ZIP code nine zero two one zero
12345 people|twelve thousand three hundred forty-five people
1000000000000|one trillion
1.5 million|one point five million
10k|ten thousand
5M users|five million users
2.5bn|two point five billion
2x faster|two times faster
10× more|ten times more
2x + 1|two x plus one
18+|eighteen plus
+5|plus five
#1|number one
№ 5|number five
B2B|B two B
an MP3 file|an MP three file
COVID-19|COVID nineteen
H2O|H two O
4K|four K
an F-16|an F sixteen
A4|A four
the G7|the G seven
5G|five G
3D|three D
an A380|an A three eighty
R2-D2|R two D two
the 3M company|the three M company
192.168.1.1|one nine two dot one six eight dot one dot one
ISBN 978-3-16-148410-0|ISBN nine seven eight, three, one six, one four eight four one zero, zero
(555) 123-4567|five five five, one two three, four five six seven
555-0199|five five five, zero one nine nine
555.123.4567|five five five, one two three, four five six seven
+1 555 123 4567|plus one, five five five, one two three, four five six seven
+44 20 7946 0958|plus four four, two zero, seven nine four six, zero nine five eight
020 7946 0958|zero two zero, seven nine four six, zero nine five eight
07700 900123|zero seven seven zero zero, nine zero zero one two three
1-800-555-0199|one, eight hundred, five five five, zero one nine nine
Call 911!|Call nine one one!
Henry VIII|Henry the Eighth
Louis XIV of France|Louis the Fourteenth of France
Queen Elizabeth II|Queen Elizabeth the Second
Elizabeth I, Queen|Elizabeth the First, Queen
King Charles I was tall|King Charles the First was tall
Pope John Paul II|Pope John Paul the Second
John Smith III|John Smith the Third
Chapter IV|Chapter four
Part III|Part three
World War II|World War Two
World War I|World War One
Act V, scene ii|Act five, scene two
Super Bowl LVIII|Super Bowl fifty-eight
Rocky IV|Rocky four
the XIX century|the nineteenth century
Apollo XI|Apollo eleven
IV|four
II. The River|two. The River
MCMXCIV|nineteen ninety-four
Vatican II|Vatican two
Malcolm X|Malcolm X
7.5/10|seven point five out of ten
20/20 vision|twenty twenty vision
a 50-50 chance|a fifty-fifty chance
1.000.000|one million
x86-64|x eighty-six-sixty-four
Tell Henry I said hi.|Tell Henry I said hi.
When Charles I'd met|When Charles I'd met
I mix the CD in DC with my MIX, vi.|I mix the CD in DC with my MIX, vi.
"""
BRITISH = """
1,234,567|one million two hundred and thirty-four thousand five hundred and sixty-seven
1,001 nights|one thousand and one nights
2,024 votes|two thousand and twenty-four votes
101|one hundred and one
the 101st|the one hundred and first
1.105|one point one zero five
"""


@pytest.mark.parametrize("written, said", split_pairs(SAID))
def test_american(written, said):
    assert apply_rules(written, RULES, "en") == said


@pytest.mark.parametrize("written, said", split_pairs(BRITISH))
def test_british(written, said):
    assert apply_rules(written, RULES, "en-GB") == said


def test_words_are_read_back():
    "Each word of a cardinal is worth what the number says."
    values = {cardinal(n): n for n in range(1000)}
    for n in (1, 17, 100, 999, 1001, 20_015, 123_456, 999_999):
        thousands, rest = divmod(n, 1000)
        words = cardinal(n).split(" thousand")
        assert len(words) == 1 + (thousands > 0)
        assert thousands == 0 or values[words[0]] == thousands
        assert values[words[-1].strip() or "zero"] == rest


def test_ordinals_end_as_written():
    for n in range(1, 1000):
        suffix = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
        assert ordinal(n).endswith(suffix if suffix != "th" else ("th", "ieth")), n
        assert apply_rules(f"{n}{suffix}", RULES) == ordinal(n)


def test_large_numbers():
    assert cardinal(10**33) == "one decillion"
    assert cardinal(10**36).startswith("one zero zero")
    assert apply_rules("9" * 5000, RULES) == " ".join(["nine"] * 5000)
    assert apply_rules("1" + ",000" * 30, RULES).startswith("one")


def test_roman_numerals():
    tens, ones = ("", "X", "XL", "XC"), ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")
    numerals = {roman(a + b + c) for a in ("", "M", "MCM") for b in tens for c in ones}
    assert None in numerals and {1, 4, 9, 44, 99, 1999} <= numerals
    assert all(roman(text) is None for text in ("", "IIII", "VX", "IM", "DIM", "CIVIC", "ABC"))


def test_years_and_decades():
    assert [year(n) for n in (1900, 1905, 1999, 2000, 2005, 2019)] == [
        "nineteen hundred", "nineteen oh five", "nineteen ninety-nine", "two thousand", "two thousand five",
        "twenty nineteen",
    ]
    assert decade(1960) == "nineteen sixties" and decade(90) == "nineties"


def test_say_number():
    assert say_number("1,234.5", "en-GB") == "one thousand two hundred and thirty-four point five"
    assert say_number("−½") == "minus one half"


def test_languages():
    assert is_british("en-GB") and is_british("en_gb") and not is_british("en") and not is_british("de")


def test_make_rule_fills_parts():
    rule = make_rule("number", "{NUMBER}", lambda match, language: None, parts=PARTS)
    assert apply_rules("5 and 1/2", [rule]) == "5 and 1/2"


HOSTILE = r"""
( "a")))) [321\u2423321] . 1/ a. 1 1, 1,111 1.1 1- - +1\u2423 + 1: 1\u2423 $1 $ 1%- % 1x x 1² ² 1' ' '90s 1h
1m IV\u2423 I Part\u2423I\u2423 Henry\u2423 May\u24235\u2423 5\u2423May\u2423 Mon,\u2423 12: 12:00- 9am- 2024-
1e1 √ = < <3 ~1 ½ a1^ ^ #1 1st 1.5\u2423m/s 1\u24231/ 0 the\u24235\u2423 é 1914-18\u2423 555- (555)\u2423
1°\u2423 1\u2423km A1- Q3\u2423 John\u24231: 10s 1,000s 1d1h £1k-
""".replace("\n", " ").split()


@pytest.mark.parametrize("unit", [*HOSTILE, "\u00a0123", "1\u2009", "\n"])
def test_hostile_texts_take_linear_time(unit):
    unit = unit.replace("\u2423", " ")
    text = unit * (25_000 // len(unit))
    said = assert_linear(lambda part: apply_rules(part, RULES), text)
    assert not re.search("[0-9½]", said)


@pytest.mark.parametrize("unit", ["1", "1/1/", "(((", "1 1/2 ", "5 May "])
def test_100_kb_take_linear_time(unit):
    assert_linear(lambda text: apply_rules(text, RULES), unit * (100_000 // len(unit)))
