"Dates, times and years as they are written and said, in American and British English."
import itertools

import pytest
from helpers import split_pairs

from metavoice.text.dates import DATE_RULES, MONTHS, clock, duration, say_date
from metavoice.text.numbers import NUMBER_RULES, ordinal, year
from metavoice.text.quantities import QUANTITY_RULES
from metavoice.text.rules import apply_rules

RULES = [*DATE_RULES, *QUANTITY_RULES, *NUMBER_RULES]
SAID = """
in 1999|in nineteen ninety-nine
It was 1984.|It was nineteen eighty-four.
in 2024|in twenty twenty-four
in 1905|in nineteen oh five
in 2000|in two thousand
in 2008|in two thousand eight
in 1066|in ten sixty-six
since 1900|since nineteen hundred
1999 people|one thousand nine hundred ninety-nine people
1984 young men|one thousand nine hundred eighty-four young men
more than 1850|more than one thousand eight hundred fifty
1500 m|one thousand five hundred meters
the 2024 election|the twenty twenty-four election
the 2024 elections|the twenty twenty-four elections
In 2019 prices rose|In twenty nineteen prices rose
1999 was cold|nineteen ninety-nine was cold
(1914–1918)|(nineteen fourteen to nineteen eighteen)
1914-18|nineteen fourteen to eighteen
the 2023/24 season|the twenty twenty-three to twenty-four season
1999’s best|nineteen ninety-nine’s best
the 1800s|the eighteen hundreds
the 1990s|the nineteen nineties
the '90s|the nineties
90s music|nineties music
the early ’60s|the early sixties
in his 20s|in his twenties
the 2010s|the twenty tens
It took 30s.|It took thirty seconds.
class of '05|class of oh five
500 BC|five hundred BC
AD 79|AD seventy-nine
384 to 322 BC|three eighty-four to three twenty-two BC
pre-1914|pre-nineteen fourteen
by 12/05|by December fifth
shipped 12/03|shipped December third
John 3:16|John three sixteen
44 BC to AD 476|forty-four BC to AD four seventy-six
3:30|three thirty
at 3:05 pm|at three oh five P M
15:00|fifteen hundred
15:45|fifteen forty-five
3 p.m.|three P M.
He came at 3 p.m. She left.|He came at three P M. She left.
at 3 p.m. on Monday|at three P M on Monday
3pm|three P M
11 AM|eleven A M
3.30pm|three thirty P M
at 10:00:05|at ten o'clock and five seconds
02:15:30|two hours, fifteen minutes and thirty seconds
9am-5pm|nine A M to five P M
9:00–5:30|nine o'clock to five thirty
9–11 a.m. today|nine to eleven A M today
noon|noon
0:30|zero thirty
12:00|twelve o'clock
3:00|three o'clock
5:30 GMT|five thirty GMT
at 8:15 EST|at eight fifteen EST
7 o'clock|seven o'clock
0800 hours|oh eight hundred hours
1:23.45|one minute twenty-three point four five seconds
2024-03-15|March fifteenth, twenty twenty-four
2024-03-15T14:30:00Z|March fifteenth, twenty twenty-four at fourteen thirty UTC
2024-03-15 09:05|March fifteenth, twenty twenty-four at nine oh five
2024/03/15|March fifteenth, twenty twenty-four
3/15/2024|March fifteenth, twenty twenty-four
15/3/2024|March fifteenth, twenty twenty-four
3/4/2024|March fourth, twenty twenty-four
03/15/24|March fifteenth, twenty twenty-four
12/31/99|December thirty-first, nineteen ninety-nine
15.03.2024|March fifteenth, twenty twenty-four
Mar 15, 2024|March fifteenth, twenty twenty-four
March 15th, 2024|March fifteenth, twenty twenty-four
on March 15|on March fifteenth
July 4|July fourth
July 4, 1776.|July fourth, seventeen seventy-six.
4 July|the fourth of July
the 4th of July|the fourth of July
15 March 2024|the fifteenth of March twenty twenty-four
Jan. 2nd|January second
Mon, 5 Feb|Monday, the fifth of February
Fri., Sept. 13|Friday, September thirteenth
Dec 1999|December nineteen ninety-nine
May 2024|May twenty twenty-four
March 10-12|March tenth to twelfth
10–12 March|the tenth to twelfth of March
March 30 – April 2|March thirtieth to April second
Jan–Mar 2024|January to March twenty twenty-four
12/25|December twenty-fifth
on 3/4|on March fourth
9/11|nine eleven
Q3 2024|Q three twenty twenty-four
Q3|Q three
FY23|FY twenty-three
I may 5 times|I may five times
May I go?|May I go?
They march on.|They march on.
version 1.2.3|version one point two point three
2:1|two to one
"""
BRITISH = """
in 2008|in two thousand and eight
in 2024|in twenty twenty-four
1999 people|one thousand nine hundred and ninety-nine people
3/4/2024|the third of April twenty twenty-four
3/15/2024|the fifteenth of March twenty twenty-four
15/3/2024|the fifteenth of March twenty twenty-four
2024-03-15|the fifteenth of March twenty twenty-four
15 March 2024|the fifteenth of March twenty twenty-four
March 15, 2024|March the fifteenth, twenty twenty-four
25/12|the twenty-fifth of December
24/7|twenty-four seven
9/11|nine eleven
17:30|seventeen thirty
"""


@pytest.mark.parametrize("written, said", split_pairs(SAID))
def test_american(written, said):
    assert apply_rules(written, RULES, "en") == said


@pytest.mark.parametrize("written, said", split_pairs(BRITISH))
def test_british(written, said):
    assert apply_rules(written, RULES, "en-GB") == said


def test_every_day_of_a_year_in_every_form():
    for month, day in itertools.product(range(1, 13), (1, 9, 13, 28)):
        name, date = MONTHS[month - 1], f"{MONTHS[month - 1]} {ordinal(day)}, nineteen eighty-one"
        iso = f"1981-{month:02}-{day:02}"
        for form in (iso, f"{month}/{day}/1981", f"{day}.{month}.1981", f"{name[:3]} {day}, 1981"):
            assert apply_rules(form, RULES, "en") == date, form
        british = f"the {ordinal(day)} of {name} nineteen eighty-one"
        for form in (iso, f"{day}/{month}/1981", f"{day} {name} 1981", f"{day}th {name[:3]} 1981"):
            assert apply_rules(form, RULES, "en-GB") == british, form


def test_every_minute():
    said = {clock(hour, minute) for hour in range(24) for minute in range(60)}
    assert len(said) == 24 * 60
    for hour, minute in itertools.product(range(24), range(60)):
        assert apply_rules(f"{hour}:{minute:02}", RULES) == clock(hour, minute)


def test_impossible_dates_are_no_dates():
    for text in ("2024-13-45", "32/13/2024", "2024-00-00", "45 March", "99/99/99"):
        said = apply_rules(text, RULES)
        assert not any(f"{name} " in said or f" of {name}" in said for name in MONTHS), said
        assert not any(c.isdigit() for c in said)


def test_parts():
    assert duration(0, 0, 0) == "zero seconds"
    assert duration(1, 0, 1) == "one hour and one second"
    assert say_date(None, 5, 2024) == "May twenty twenty-four"
    assert say_date(1, 1, None, "en-GB") == "the first of January"
    assert year(2001, "en-GB") == "two thousand and one"
