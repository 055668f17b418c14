"Web and e-mail addresses, files, tags and names from code in words."

import pytest
from helpers import assert_linear

from metavoice.text.rules import apply_rules
from metavoice.text.web import CASE_RULES, WEB_RULES, say_email, say_file, say_url, split_camel


def say(text):
    return apply_rules(text, [*WEB_RULES, *CASE_RULES])


@pytest.mark.parametrize(
    "url, said",
    [
        ("https://www.example.com/path?q=1", "example dot com slash path"),
        ("HTTP://WWW.EXAMPLE.COM", "example dot com"),
        ("https://example.com/", "example dot com"),
        ("https://user:secret@example.com/a", "example dot com slash a"),
        ("http://bbc.co.uk/news#top", "B B C dot co dot U K slash news"),
        ("https://my-site.io", "my dash site dot I O"),
        ("http://10.0.0.1:80/x", "1 0 dot 0 dot 0 dot 1 port 8 0 slash x"),
        ("https://a.org/one%20two/3_x", "a dot org slash one two slash 3 x"),
        ("https://youtu.be/dQw4w9WgXcQ/x", "youtu dot B E"),
        ("https://a.org/" + "b/" * 50, "a dot org" + " slash b" * 4),
        ("file:///etc/hosts", "E T C slash hosts"),
    ],
)
def test_url(url, said):
    assert say_url(url) == said


def test_a_long_url_is_said_shortly():
    assert len(say_url("https://example.com/" + "word-" * 400 + "/" + "x" * 500).split()) < 20


@pytest.mark.parametrize(
    "address, said",
    [
        ("john.smith@example.com", "john dot smith at example dot com"),
        ("a_b-c+d@mail.example.org", "a underscore b dash c plus d at mail dot example dot org"),
        ("info5@x.de", "info 5 at x dot D E"),
    ],
)
def test_email(address, said):
    assert " ".join(say_email(address).split()) == said
    assert " ".join(say(f"To {address}.").split()) == f"To {said}."


@pytest.mark.parametrize(
    "name, said",
    [
        ("report_final.pdf", "report final dot P D F"), ("setup.py", "setup dot P Y"), ("README.md",
        "readme dot M D"),
        ("a.tar.gz", "a dot tar dot G Z"), ("x.mp3", "x dot M P 3"), ("data.json", "data dot jason"), ("a-b.wav",
        "a b dot wave"),
    ],
)
def test_file(name, said):
    assert say_file(name) == said
    assert say(f"({name})") == f"({said})"


@pytest.mark.parametrize(
    "word, said",
    [
        ("camelCase", "camel Case"), ("HTMLParser", "HTML Parser"), ("OpenAI", "Open AI"), ("McDonald", "McDonald"),
        ("DeVito", "DeVito"), ("iPhone", "iPhone"), ("iOS", "i OS"), ("YouTube", "YouTube"), ("getElementById",
        "get Element By Id"),
    ],
)
def test_camel_case(word, said):
    assert split_camel(word) == said


@pytest.mark.parametrize(
    "written, said",
    [
        ("See example.com.", "See example dot com."),
        ("(see www.example.com/a_(b))", "(see example dot com slash a (b))"),
        ("It is so.It is", "It is so.It is"),
        ("tell me.it was", "tell me.it was"),
        ("e.g. this and 3.5 or p.m.", "e.g. this and 3.5 or p.m."),
        ("and/or, 1/2, w/o, he/she", "and/or, 1/2, w/o, he/she"),
        ("C:\\Users\\me is", "C colon backslash Users backslash me is"),
        ("cat /etc/hosts or ~/.ssh/id", "cat slash E T C slash hosts or tilde slash dot S S H slash id"),
        ("src/a_b.py and ./run.sh", "source slash a b dot P Y and dot slash run dot S H"),
        ("@anna and #Big_News, #1", "at anna and hashtag Big News, #1"),
        ("a@b is not one", "a@b is not one"),
        ("C++, C#, F# and .NET", "C plus plus, C sharp, F sharp and dot net"),
        ("Node.js. Then", "Node dot J S. Then"),
        ("run --fast or -v now", "run dash dash fast or dash v now"),
        ("well-known - so - -5", "well-known - so - -5"),
        ("__init__ and my_file_name", "init and my file name"),
        ("print() and f(x)", "print and f of x"),
        ("$5/hour and $HOME/a", "$5/hour and home slash a"),
    ],
)
def test_text(written, said):
    assert " ".join(say(written).split()) == said


@pytest.mark.parametrize(
    "unit", ["/a", "a/", "@a", "a@", "a@b.", "a.", "a-", "#a", "_a", "a_", "aB", "-a ", "https://", "www.a.",
    "C:\\", "\\", "~/", ".."]
)
def test_time_is_linear(unit):
    assert_linear(say, unit * (100_000 // len(unit)))
