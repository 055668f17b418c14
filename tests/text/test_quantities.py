"Money, units and mathematical signs as they are written and said, in American and British English."
import random
import re
import time

import pytest
from helpers import slowness, split_pairs

from metavoice.text.dates import DATE_RULES
from metavoice.text.numbers import NUMBER_RULES
from metavoice.text.quantities import CURRENCIES, QUANTITY_RULES, UNITS, money, unit_name
from metavoice.text.rules import apply_rules

RULES = [*DATE_RULES, *QUANTITY_RULES, *NUMBER_RULES]
SAID = """
It cost $12.50.|It cost twelve dollars and fifty cents.
$1|one dollar
$0.99|ninety-nine cents
99¢|ninety-nine cents
$1.01|one dollar and one cent
$5.5|five point five dollars
$5.00|five dollars
£2m|two million pounds
£3.50|three pounds and fifty pence
£0.01|one penny
Only 5€ left|Only five euros left
€5 or 5 €|five euros or five euros
12,50 €|twelve euros and fifty cents
¥500|five hundred yen
₹200|two hundred rupees
US$20|twenty US dollars
C$5|five Canadian dollars
$1.2 million|one point two million dollars
$3bn|three billion dollars
$1.5bn|one point five billion dollars
$100k|one hundred thousand dollars
$5–10|five to ten dollars
$5-$10|five to ten dollars
$1-2 million|one to two million dollars
$1,000,000|one million dollars
20 USD|twenty US dollars
EUR 20|twenty euros
50p|fifty pence
1080p|ten eighty p
-$5|minus five dollars
a $5 bill|a five dollar bill
a $20 million deal|a twenty million dollar deal
the $5 that I had|the five dollars that I had
$5/hour|five dollars per hour
$1500|one thousand five hundred dollars
"$5.5"|"five point five dollars"
5 km|five kilometers
1 km|one kilometer
1.5 km|one point five kilometers
1/2 km|half a kilometer
½ hr|half an hour
3/4 mi|three quarters of a mile
2½ miles|two and a half miles
10kg|ten kilograms
a 10kg bag|a ten kilogram bag
6ft|six feet
1 ft|one foot
He is 5'10".|He is five foot ten.
6 ft 2 in|six feet two inches
6' tall|six feet tall
100 mph|one hundred miles per hour
60 km/h|sixty kilometers per hour
10 m/s|ten meters per second
9.81 m/s²|nine point eight one meters per second squared
20°C|twenty degrees Celsius
20 °C|twenty degrees Celsius
72°F|seventy-two degrees Fahrenheit
−5°C|minus five degrees Celsius
It is -5°C.|It is minus five degrees Celsius.
20-25°C|twenty to twenty-five degrees Celsius
a 90° turn|a ninety degree turn
1°|one degree
250 ml|two hundred fifty milliliters
16GB|sixteen gigabytes
100 MB/s|one hundred megabytes per second
5 kWh|five kilowatt hours
440 Hz|four hundred forty hertz
2.4 GHz|two point four gigahertz
5 mm|five millimeters
3 lbs|three pounds
1 lb|one pound
8 oz|eight ounces
500 sq ft|five hundred square feet
50 m²|fifty square meters
50 m2|fifty square meters
1013 hPa|one thousand thirteen hectopascals
60W|sixty watts
12 V|twelve volts
5 min|five minutes
2 hrs|two hours
5 s and 30 ms|five seconds and thirty milliseconds
5-10 km|five to ten kilometers
5km–10km|five to ten kilometers
3 x 4 m|three by four meters
5 million km|five million kilometers
5m people|five million people
5 in the morning|five in the morning
10 in. wide|ten inches wide
1h30m|one hour thirty minutes
1h 30min|one hour thirty minutes
5m30s|five minutes thirty seconds
50%|fifty percent
0.5 %|zero point five percent
5-10%|five to ten percent
5%-10%|five percent to ten percent
±5%|plus or minus five percent
3 ‰|three per thousand
the % of it|the percent of it
51°30′N|fifty-one degrees thirty minutes north
3×4|three times four
3 x 4|three times four
a 4x4|a four by four
1920×1080|nineteen twenty by ten eighty
2+2=4|two plus two equals four
10 ÷ 2|ten divided by two
5 − 3|five minus three
5 - 3 = 2|five minus three equals two
x > 5|x is greater than five
x ≤ 5|x is less than or equal to five
a ≠ b|a is not equal to b
≥ 10|greater than or equal to ten
≈5|approximately five
~5|about five
√2|the square root of two
2π|two pi
2πr|two pi r
∞|infinity
2^10|two to the power of ten
10³|ten cubed
x²|x squared
E = mc²|E equals m c squared
1e-5|one times ten to the power of minus five
6.02×10²³|six point zero two times ten to the power of twenty-three
H₂O|H two O
$1 = €0.92|one dollar equals ninety-two cents
E=mc^2|E equals m c squared
4' x 8' sheets|four foot by eight foot sheets
3/4" screws|three quarters inch screws
$5M-$10M|five million dollars to ten million dollars
10 st 4 lb|ten stone four pounds
C++ and A+|C++ and A+
a well-known x-ray|a well-known x-ray
I <3 you|I love you
we love it <3|we love it
"""
BRITISH = """
5 km|five kilometres
250 ml|two hundred and fifty millilitres
9.81 m/s²|nine point eight one metres per second squared
1 mm|one millimetre
$101|one hundred and one dollars
a 5 km run|a five kilometre run
£2,500|two thousand five hundred pounds
"""


@pytest.mark.parametrize("written, said", split_pairs(SAID))
def test_american(written, said):
    assert apply_rules(written, RULES, "en") == said


@pytest.mark.parametrize("written, said", split_pairs(BRITISH))
def test_british(written, said):
    assert apply_rules(written, RULES, "en-GB") == said


@pytest.mark.parametrize("symbol", sorted(set(UNITS) - {"%", "‰", "K", "in"}))
def test_every_unit_is_said_with_one_and_with_two(symbol):
    for space in ("", " "):
        assert apply_rules(f"1{space}{symbol}", RULES) == f"one {unit_name(symbol)}"
        assert apply_rules(f"2{space}{symbol}", RULES) == f"two {unit_name(symbol, many=True)}"


@pytest.mark.parametrize("currency", sorted(CURRENCIES))
def test_every_currency(currency):
    one, many, cent, cents = CURRENCIES[currency]
    assert money("1", currency) == f"one {one}" and money("2", currency) == f"two {many}"
    assert apply_rules(f"{currency}7", RULES) == f"seven {many}"
    if cent:
        assert money("0.01", currency) == f"one {cent}" and money("2.02", currency) == f"two {many} and two {cents}"


def test_no_digit_is_left_and_nothing_hangs():
    rng = random.Random(1)
    bits = list("0123456789,.-/: +()x×'\"½–#$€m%°²^=<k\n−hs₂‰√IVX") + ["km", "pm", "May ", "BC", "th", "1990s", "mph"]
    start = time.process_time()
    for _ in range(500):
        text = "".join(rng.choice(bits) for _ in range(rng.randint(1, 60)))
        for language in ("en", "en-GB"):
            assert not re.search("[0-9½]", apply_rules(text, RULES, language)), text
    for _ in range(20):
        text = "".join(rng.choice(bits) for _ in range(rng.randint(1, 12)))
        apply_rules(text * (20_000 // len(text)), RULES)
    assert time.process_time() - start < 20 * slowness()


def test_a_sentence_takes_about_a_millisecond():
    text = "In 2024 sales rose 5.2% to $1.5 billion, or £12.50 a head, Dr. Brown said on March 15, 2024 at 3:30 pm."
    best = 1.0
    for _ in range(20):
        start = time.process_time()
        apply_rules(text, RULES)
        best = min(best, time.process_time() - start)
    assert best < 0.005
