"Texts that nobody expects: characters of all planes between plain words, figures, Markdown and requests for pauses."

import random
import unicodedata
from dataclasses import dataclass, field

WORDS = (
    "garden window river yellow market kitchen mother winter letter blanket chicken forest hammer island jacket "
    "ladder monkey needle orange pencil quarrel rabbit shoulder tomato umbrella village weather candle bottle doctor "
    "engine farmer glass hollow insect kettle lemon mirror number pocket silver table thunder uncle velvet wagon"
).split()
ACCENTED = {"café": "cafe", "naïve": "naive", "façade": "facade", "über": "uber", "señora": "senora", "Zoë": "zoe"}
SENTENCES = (
    "“Come in,” she said. It cost $12.50, I think…",
    "Dr. Smith lives at 221B Baker St. – since 1994!",
    "The EU, NASA and IBM met on 3/4/2026 at 10:30 p.m.",
    "Don't shout STOP; it's 5 °C (or 41 °F) outside.",
    "See https://example.com/a_b?c=d, e.g. chapter IV, pp. 12–15.",
    "He's 6'2\" and weighs 80 kg & that's that.",
)
MARKUP = (
    "**bold**", "_it_", "# Title", "\n## Two\n", "\n- item\n- item\n", "\n1. one\n2. two\n", "[link](https://a.b/c(d))",
    "![](x.png)", "`code()`", "\n```py\nx = 1\n```\n", "|a|b|\n|-|-|\n|1|2|\n", "<b>bold</b>", "<br/>", "<!-- no -->",
    "&amp;lt;", "&#x1F600;", "&#0;", "\n> quote\n", "[^1]", "[1]", "\n---\n", "~~gone~~", "\n[a]: http://b\n",
    "<script>x", "$$x^2$$", "\\*", "***", "](", "[[", "```", "<", "&nbsp;", "\n\n",
)  # fmt: skip
PAUSES = ("[pause 0.5s]", "[pause]", "[pause 300 ms]", "[pause: 2]", "\n[pause 1s]\n", "[PAUSE 1,5 s]")
BAD_PAUSES = ("[pause 99s]", "[pause 1.2.3]", "[pause -1s]", "[pause 5x]")
SPACES = " \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2009\u200b\u2028\u2029\u202f\u3000\ufeff\u2060"
BIDI = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
JUNK = "!\"#$%&'*+,-./:;=?@\\^_`{|}~()]"  # without what makes a tag, a reference or a pause with a word in it
SCRIPTS = (
    (0x370, 0x3FF), (0x400, 0x4FF), (0x530, 0x58F), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F),
    (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1E00, 0x1EFF), (0x2070, 0x209F), (0x20A0, 0x20CF), (0x2100, 0x218F),
    (0x2200, 0x22FF), (0x2460, 0x24FF), (0x3040, 0x30FF), (0x3200, 0x33FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
    (0xF900, 0xFAFF), (0xFB00, 0xFB4F), (0xFF00, 0xFFEF), (0x10000, 0x1034F), (0x12000, 0x123FF), (0x1D400, 0x1D7FF),
    (0x1F100, 0x1F2FF), (0x20000, 0x2A6DF), (0x100, 0x24F), (0xA1, 0xFF),
)  # fmt: skip
FIGURES = (
    lambda draw: str(draw.randrange(10 ** draw.randrange(1, 12))),
    lambda draw: f"{draw.randrange(10**7):,}",
    lambda draw: f"{draw.uniform(-100, 100):.{draw.randrange(1, 5)}f}",
    lambda draw: f"{draw.choice('$£€¥')}{draw.randrange(5000)}{draw.choice(('', '.50', 'k', ' million'))}",
    lambda draw: f"{draw.randrange(300)}{draw.choice('%‰')}",
    lambda draw: f"{draw.randrange(24)}:{draw.randrange(60):02}",
    lambda draw: f"{draw.randrange(1000, 2100)}-{draw.randrange(1, 13):02}-{draw.randrange(1, 29):02}",
    lambda draw: f"{draw.randrange(1, 13)}/{draw.randrange(1, 29)}/{draw.randrange(1900, 2100)}",
    lambda draw: f"{draw.randrange(1, 400)}{draw.choice(('st', 'nd', 'rd', 'th'))}",
    lambda draw: f"{draw.randrange(20)}/{draw.randrange(20)}",
    lambda draw: f"{draw.randrange(9)}.{draw.randrange(20)}.{draw.randrange(9)}",
    lambda draw: f"{draw.randrange(900)}{draw.choice('–-−×/:.,')}{draw.randrange(900)}",
    lambda draw: f"{draw.randrange(900)}{draw.choice((' ', ''))}{draw.choice('kg km cm ml °C °F mph GB Hz'.split())}",
    lambda draw: f"+{draw.randrange(99)} {draw.randrange(999)} {draw.randrange(10**6)}",
    lambda draw: f"{draw.randrange(100)}e{draw.randrange(-20, 20)}",
    lambda draw: f"0x{draw.randrange(2**16):X}",
    lambda draw: "".join(draw.choice("0123456789") for _ in range(draw.choice((1, 20, 60)))),
    lambda draw: f"{draw.choice('½¼¾⅓⅞')}",
    lambda draw: f"{draw.randrange(100)}{draw.choice('²³½¼')}",
)


@dataclass
class Text:
    "A text, how it is to be read, and what has to be heard of it."

    text: str
    kind: str
    options: dict = field(default_factory=dict)
    words: list[str] = field(default_factory=list)  # in order, in lower case
    has_figures: bool = False  # something is said between any two of the words


class Scribbler:
    "Draws texts."

    kinds = ("noise", "words", "figures", "prose", "words", "noise", "figures", "prose", "long word")

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.marks = [chr(c) for c in range(0x11_0000) if unicodedata.category(chr(c))[0] == "M"]
        self.digits = [chr(c) for c in range(0x80, 0x11_0000) if unicodedata.category(chr(c))[0] == "N"]

    def character(self):
        "Any code point but a surrogate."
        code = self.draw.randrange(0x11_0000 - 0x800)
        return chr(code if code < 0xD800 else code + 0x800)

    def some(self, characters, most=6):
        return "".join(self.draw.choice(characters) for _ in range(self.draw.randint(1, most)))

    def script(self):
        first, last = self.draw.choice(SCRIPTS)
        return "".join(chr(self.draw.randint(first, last)) for _ in range(self.draw.randint(1, 8)))

    def emoji(self):
        draw, base = self.draw, [chr(self.draw.randrange(0x1F300, 0x1FAFF)) for _ in range(self.draw.randint(1, 4))]
        tails = ("", "\ufe0f", "\U0001f3fd", "\u20e3")
        flag = "".join(chr(draw.randrange(0x1F1E6, 0x1F200)) for _ in range(draw.randint(1, 3)))
        joined = draw.choice(("", "\u200d", "\u200d\u200d")).join(c + draw.choice(tails) for c in base)
        return draw.choice((joined, flag, draw.choice("0123456789#*") + "\ufe0f\u20e3", "☃︎", "❤️‍🔥"))

    def noise(self):
        "A few characters of one sort, without Markdown."
        draw = self.draw
        sorts = (
            lambda: "".join(self.character() for _ in range(draw.randint(1, 5))),
            lambda: chr(draw.choice((*range(32), *range(0x7F, 0xA0)))),
            lambda: draw.choice("aeó") + self.some(self.marks, draw.choice((1, 3, 80))),
            lambda: self.some(BIDI),
            self.emoji,
            lambda: chr(draw.randrange(0x1_0000, 0x3_2000)),
            lambda: chr(draw.choice((0xFDD0, 0xFFFE, 0xFFFF, 0x1FFFE, 0x378, 0xE000, 0xE0001, 0x10FFFF, 0xFFFD))),
            self.script,
            lambda: self.some(self.digits),
            lambda: self.some(JUNK),
            lambda: self.some(SPACES, 3),
            lambda: self.some("…—–‐−·•“”‘’«»„¿¡。、！？؟।‽", 4),
        )
        return draw.choice(sorts)()

    def piece(self):
        "Noise, a word, a figure, a sentence, Markdown or a pause."
        draw = self.draw
        other = (
            lambda: draw.choice(WORDS),
            lambda: draw.choice(FIGURES)(draw),
            lambda: draw.choice(SENTENCES),
            lambda: draw.choice(MARKUP),
            lambda: draw.choice(PAUSES if draw.random() < 0.95 else BAD_PAUSES),
            lambda: self.some(JUNK + "<>[", 10),
        )
        return self.noise() if draw.random() < 0.5 else draw.choice(other)()

    def word(self):
        "A plain word, written in one of several ways, and how it is said."
        draw = self.draw
        if draw.random() < 0.1:
            word = draw.choice(list(ACCENTED))
            return unicodedata.normalize(draw.choice(("NFC", "NFD")), word), ACCENTED[word]
        word = draw.choice(WORDS)
        shift = draw.choice((0,) * 12 + (0xFF41, 0x1D41A, 0x1D5EE))  # wide, bold and sans-serif letters
        if shift:
            return "".join(chr(ord(c) - ord("a") + shift) for c in word), word
        return draw.choice((word, word, word.capitalize())), word

    def options(self):
        "How the text is read; mostly by default."
        choices = (dict(spoken=False), dict(emoji=True), dict(language="en-GB"), dict(strict=True))
        return self.draw.choice(choices) if self.draw.random() < 0.3 else {}

    def make(self, kind, length):
        "Return a `Text` of about a number of characters."
        draw, out, words = self.draw, [], []
        if kind == "long word":
            return draw.choice((self.character(), *"a1.([*<&-/", "a.", "1,", "é", "1/", "A.", "ab-")) * length, []
        if kind == "figures":
            words = draw.sample(WORDS, min(len(WORDS), 2 + length // 20))
            return " ".join(f"{w} {draw.choice(FIGURES)(draw)}" for w in words[:-1]) + " " + words[-1], words
        size = 0
        while size < length:
            if kind == "words" and draw.random() < 0.6:
                written, said = self.word()
                out.append(f" {written} ")
                words.append(said)
            elif kind == "words":
                out.append(self.noise())
            elif kind == "prose" and draw.random() < 0.7:
                out.append(draw.choice((*SENTENCES, *WORDS)) + " ")
            else:
                out.append(self.piece() + draw.choice(("", "", " ", "\n")))
            size += len(out[-1])
        return "".join(out) if kind == "words" else "".join(out)[:length], words

    def texts(self, count, longest=2000):
        "Yield texts of 1 to `longest` characters, short ones more often."
        for n in range(count):
            kind, length = self.kinds[n % len(self.kinds)], round(longest ** (self.draw.random() ** 1.8))
            text, words = self.make(kind, length)
            yield Text(text, kind, self.options(), words, kind == "figures")
