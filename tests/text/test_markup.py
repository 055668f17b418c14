"Markup: Markdown, HTML left-overs, wrapped lines and pauses become blocks; plain prose stays as it is."

import pytest
from helpers import assert_linear

from metavoice.core.errors import TextError
from metavoice.text.markup import MAX_PAUSE, RULE_PAUSE, Block, join_wrapped, read_blocks


def texts(text):
    return [block.text for block in read_blocks(text)]


def kinds(text):
    return [(block.kind, block.text) for block in read_blocks(text)]


@pytest.mark.parametrize(
    "text",
    [
        "He sat down.",
        "2 * 3 * 4",
        "2*3*4 and a*b*c",
        "snake_case_name and x_1 + y_2 = z_3",
        "I scored 5 - 3.",
        "I <3 you, and 3 < 5 > 2",
        "#1 is here, #hashtag too",
        "a[1] = b[2], see [321 321] there",
        "AT&T and R&D, ?a=1&copy=2",
        "C:\\new\\file",
        "List<Item> of x<y>z",
        "It was 1984. Then he went.",
        "1984. A great book.",
        "He is 6'2\" tall.",
        "Rock 'n' roll",
        "~5 to ~6",
        "5 * a",
        "-5 degrees",
        "+ 5 = 7",
        "Is f(x) = [x] ok?",
        "players[0] or list[1] = 2, [prefix](short | long)",
        "a | b",
        "He paused [for effect] and left.",
        "'Tis so — and so – it was...",
        "🙂 :-) 8-)",
    ],
)
def test_prose_stays(text):
    assert read_blocks(text) == [Block(text)]


@pytest.mark.parametrize(
    "text, plain",
    [
        ("**Wash** the *rice*, ***now***!", "Wash the rice, now!"),
        ("_Stop!_ he said, __loudly__.", "Stop! he said, loudly."),
        ("**Bold with *it* inside**", "Bold with it inside"),
        ("~~no~~ ==yes==", "no yes"),
        ("un*believ*able", "unbelievable"),
        ("_The tall_snake_case man_", "The tall_snake_case man"),
        ("*Hello,* she said (*aside*).", "Hello, she said (aside)."),
        ('"*Stop!*" he said', '"Stop!" he said'),
        ("Use `my_file[0]` and ``a*b*c``.", "Use my_file[0] and a*b*c."),
        ("See [this page](https://a.org/b_(c) \"title\").", "See this page."),
        ("![A cat](cat.png) sat. [![x](y)](z)", "A cat sat. x"),
        ("<https://a.org> <me@a.org>", "https://a.org me@a.org"),
        ("Text[^1] here.[^note]", "Text here."),
        ("It rained.[12] He slept.", "It rained. He slept."),
        ("a\\*b\\* \\# \\[x\\] \\_y\\_", "a*b* # [x] _y_"),
        ("Tom &amp; Ann &mdash; &#8217;&nbsp;&lt;3 &amp;lt;", "Tom & Ann — ’ <3 <"),
        ("<b>One</b> <i class='x'>two</i><!-- three --><span>!</span>", "One two!"),
        ("a<script>var x = 1 < 2;</script>b<style>p{}</style>", "ab"),
        ('<img src="a.png" alt="A cat"> sat', "A cat sat"),
        ("**Note: it rains", "Note: it rains"),
        ("_Italic across\nlines_ here", "Italic across lines here"),
    ],
)
def test_inline_markup(text, plain):
    assert texts(text) == [plain]


@pytest.mark.parametrize(
    "text, blocks",
    [
        ("# One\ntext", [("heading", "One"), ("paragraph", "text")]),
        ("###### *Six* ##", [("heading", "Six")]),
        ("## 1. Wash 2. rice", [("heading", "1, Wash 2. rice")]),
        ("Title\n=====\ntext", [("heading", "Title"), ("paragraph", "text")]),
        ("Title\n---\ntext", [("heading", "Title"), ("paragraph", "text")]),
        ("Title\n*****\ntext", [("heading", "Title"), ("paragraph", "text")]),
        ("He went.\n***\ntext", [("paragraph", "He went."), ("paragraph", "text")]),
        ("- milk\n- eggs\n  and ham\n* tea", [("item", "milk"), ("item", "eggs and ham"), ("item", "tea")]),
        ("Buy:\n- milk\n+ eggs", [("paragraph", "Buy:"), ("item", "milk"), ("item", "eggs")]),
        ("- [ ] one\n- [x] two", [("item", "one"), ("item", "two")]),
        ("1. one\n2. two\n\n3) three", [("item", "1, one"), ("item", "2, two"), ("item", "3, three")]),
        ("(a) one\n(b) two", [("item", "a, one"), ("item", "b, two")]),
        ("> He said\n> that\n>> it rains", [("paragraph", "He said that it rains")]),
        ("a | b\n--|--\n1 | 2", [("item", "a, b"), ("item", "1, 2")]),
        ("| a | |\n|:--|:-:|\n| **1** | 2<br>3 |", [("item", "a"), ("item", "1, 2, 3")]),
        ("```python\nx = '*y*'\nz = 1\n```\nDone.", [("line", "x = '*y*'"), ("line", "z = 1"), ("paragraph", "Done.")]),
        ("```\nnever closed", [("paragraph", "never closed")]),
        ("<h2>One</h2><p>two<br>three</p>", [("heading", "One"), ("line", "two"), ("paragraph", "three")]),
        ("<ul><li>one<li>two &amp; three</ul>", [("item", "one"), ("item", "two & three")]),
        ("<table><tr><td>1</td><td>2</td></tr></table>", [("item", "1, 2")]),
        ("See [this][ref] and [that].\n\n[ref]: https://a.org", [("paragraph", "See this and [that].")]),
        ("– Come in.\n— Yes.", [("line", "Come in."), ("line", "Yes.")]),
        ("[^1]: The note.", [("paragraph", "The note.")]),
        ("", []),
        (" \n\t\n", []),
        ("[](https://a.org)", []),
        ("---", []),
    ],
)
def test_block_markup(text, blocks):
    assert kinds(text) == blocks


def test_dialogue_with_hyphens():
    text = "- Where is he?\n- I know, said the man – and he did not – who had been waiting\nfor the old woman."
    assert texts(text) == [
        "Where is he?",
        "I know, said the man – and he did not – who had been waiting for the old woman.",
    ]


def test_a_number_within_a_paragraph_is_no_list():
    text = "He had been asked for the number of the house in this street, and he said\n5. Then he left.\nThe man"
    assert texts(text) == [
        "He had been asked for the number of the house in this street, and he said 5. Then he left.",
        "The man",
    ]
    text = "The river that he had seen in the morning from the bridge was far away\n- it was a long way -\nand he"
    assert len(texts(text)) == 1


# lines
WRAPPED = """The old man had walked along the river since the early morning, and in
the evening he came to a bridge. Mister
Brown, who was tired, sat down. Nobody said a word for a long time. The
moon rose.

“Come in,” she said."""


def test_wrapped_lines_are_joined():
    assert texts(WRAPPED) == [' '.join(WRAPPED.split('\n\n')[0].split()), "“Come in,” she said."]
    narrow = "He lives in the\nold house and\nworks in\nManchester now."
    assert texts(narrow) == [' '.join(narrow.split())]


@pytest.mark.parametrize(
    "text, lines",
    [
        ("Chapter One\nThe River\n\nThe old man walked.", ["Chapter One", "The River", "The old man walked."]),
        ("Roses are red,\nViolets are blue,\nSugar is sweet.", None),
        ("Mr. J. Smith\n12 High Street\nLondon", None),
        ("Dear Sir,\nThank you.", None),
        ("Hello.\nHow are you?\nFine.", None),
        ("hello there\nhow are you\ni am fine", None),
        ("One \\\ntwo", ["One", "two"]),
        ("A" + " long line" * 12 + "\nShort.\nB" + " long line" * 12 + ".", None),
        ("one.\r\nTwo.\rThree.\u2028Four.\x85Five.\u2029Six.", ["one.", "Two.", "Three.", "Four.", "Five.", "Six."]),
    ],
)
def test_lines_that_end_on_purpose(text, lines):
    assert texts(text) == (lines or text.split('\n'))


def test_divided_words():
    lines = [
        "the well-",
        "known some-",
        "thing of the night-",
        "watch and the sis\xad",
        "ter went to Stratford-",
        "On-Avon",
    ]
    assert join_wrapped(lines, frozenset(["night-watch"])) == [
        "the well-known something of the night-watch and the sister went to Stratford- On-Avon"
    ]
    assert texts("He saw the night-watch. The night-\nwatch saw him.") == [
        "He saw the night-watch. The night-watch saw him."
    ]


# pauses
@pytest.mark.parametrize(
    "written, seconds",
    [
        ("[pause 0.5s]", 0.5),
        ("[pause 500ms]", 0.5),
        ("[pause]", 1.0),
        ("[pause 2 s]", 2.0),
        ("[PAUSE: 3]", 3.0),
        ("[pause .25 seconds]", 0.25),
        ("[pause 0,5 s]", 0.5),
        ("[pause 0s]", 0.0),
        ('<break time="1.5s"/>', 1.5),
        ("[pause 1s][pause 2s]", 3.0),
        ("[pause 1s]\n\n[pause 2s]\n", 3.0),
    ],
)
def test_pauses(written, seconds):
    first, second = Block("Wait", pause=seconds), Block("for me.")
    assert read_blocks(f"Wait {written} for me.") == [first, second]
    assert read_blocks(f"**Wait** {written}\n\nfor me.") == [first, second]
    assert read_blocks(f"{written} Wait\n{written}\nfor me. {written}") == [first, Block("for me.", pause=seconds)]


def test_pauses_of_other_blocks():
    blocks = read_blocks("# One [pause 2s]\n- two [pause 3s] three\n\nfour\n\n* * *\n\nfive\n\n---\n[pause 4s]\n\nsix")
    assert [(b.kind, b.pause) for b in blocks] == [
        ("heading", 2.0),
        ("item", 3.0),
        ("item", None),
        ("paragraph", RULE_PAUSE),
        ("paragraph", 4.0),
        ("paragraph", None),
    ]


@pytest.mark.parametrize("length", ["10.1s", "60s", "-1s", "1 hour", "99999999999", "1.2.3", "5s extra"])
def test_absurd_pauses(length):
    with pytest.raises(TextError, match=r"use 0 to 10 s"):
        read_blocks(f"Wait [pause {length}] here")


def test_pauses_that_add_up():
    with pytest.raises(TextError, match="the pauses after 'Wait' add up to 12 s; use up to 10 s"):
        read_blocks("Wait [pause 6s][pause 6s] here")
    assert read_blocks(f"Wait [pause {MAX_PAUSE:g}s]")[0].pause == MAX_PAUSE


@pytest.mark.parametrize("text", [None, 5, b"bytes"])
def test_not_a_string(text):
    with pytest.raises(TextError, match=f"not {type(text).__name__}"):
        read_blocks(text)


# every string that is repeated tries one pattern
FEARED = (
    "( `a `` ``` ```\n *a ** *a* _a_ _a_b __a ~~a ==a [ [a] [a]( [a](b ![ [![a]( [^ [^a] <a <a> </a <br> <!-- <script> "
    "<style>a</style> & &amp &#1 &a; | |a| |-\n a|b\n-|-\n > >a # #a\n - -a\n 1. 1.a\n [pause [pause] \\ \\* "
    "\n a\n a-\n \ufdd0 <a\t \u2028 --\n ==\n a[1]"
).split(' ')


def blocks_or_none(text):
    try:
        return read_blocks(text)
    except TextError as e:  # too much silence asked for
        assert 'pause' in str(e)
        return []


@pytest.mark.parametrize("unit", FEARED)
def test_time_is_linear(unit):
    for text in (unit, ' ' + unit + ' ' + 'a' * 500):
        blocks = assert_linear(blocks_or_none, (text * (100_000 // len(text)))[:100_000])
        assert all(block.text == ' '.join(block.text.split()) != '' for block in blocks)
