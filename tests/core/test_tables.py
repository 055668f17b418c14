"Text files and tables: encodings, quotes, line ends, long cells, unclosed quotes, and linear time."
import csv
import io
import json
import random
import time
from dataclasses import dataclass

import pytest

from metavoice.core.errors import OptionError, TextError
from metavoice.core.tables import (
    decode_text,
    format_json,
    parse_delimited,
    parse_json_rows,
    parse_record,
    read_text,
    split_lines,
)

TABLE = "file_name,text\n1.wav,Zoë slept.\n"


def cells(text, delimiter=",", **options):
    return [row for _, row in parse_delimited(text, delimiter, **options)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_that_can_be_told(tmp_path, encoding):
    (tmp_path / "a.csv").write_bytes(TABLE.encode(encoding))
    assert read_text(tmp_path / "a.csv") == TABLE


def test_other_encodings_are_named_with_their_line(tmp_path):
    (tmp_path / "a.csv").write_bytes(TABLE.encode("latin-1"))
    with pytest.raises(OptionError, match=r"a\.csv: line 2 isn't UTF-8: byte 0xEB is 'ë' in Latin-1; save it as UTF-8"):
        read_text(tmp_path / "a.csv")
    with pytest.raises(TextError, match="isn't UTF-16; save it as UTF-8"):
        decode_text(b"\xff\xfe1")
    with pytest.raises(TextError, match="isn't a text file"):
        decode_text(b"RIFF\0\0\0\0WAVEfmt \0\0\0\0")
    for path in (tmp_path, tmp_path / "none", tmp_path / ("x" * 300), "a\0b"):
        with pytest.raises(OptionError, match="can't read"):
            read_text(path)


def test_lines_end_only_at_line_ends():
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"
    assert split_lines(f"{odd}\r\n{odd}\n") == [odd, odd, ""]
    assert cells(f"x,{odd}\r\ny,z") == [["x", odd], ["y", "z"]]
    assert split_lines("a\rb") == ["a", "b"] and split_lines("a\r\r\nb") == ["a", "b"]
    assert parse_json_rows(f'{{"a": "{odd}"}}\n') == [(1, dict(a=odd))]


def test_quotes():
    assert cells('a,"b,""c"""\nd, "e" ,f') == [["a", 'b,"c"'], ["d", "e", "f"]]
    assert cells('a,"Come in," she said.\nb,a 5" nail\nc,She said "no".') == [
        ["a", '"Come in," she said.'], ["b", 'a 5" nail'], ["c", 'She said "no".']
    ]
    assert cells('1|"Come in.\n2|"Go away," he said.\n3|Yes."', "|") == [
        ["1", '"Come in.'], ["2", '"Go away," he said.'], ["3", 'Yes."']
    ]
    assert cells('1|"a|b"|c\n2|"two\nlines"|d', "|") == [["1", "a|b", "c"], ["2", "two\nlines", "d"]]


def test_line_numbers_count_the_lines_in_cells():
    rows = parse_delimited('a,"1\n2\n3"\n\n\nb,c\r\nd,"4\r\n5"\r\ne,f', ",")
    assert [(line, row[0]) for line, row in rows] == [(1, "a"), (6, "b"), (7, "d"), (9, "e")]


def test_unclosed_quotes_are_problems_of_their_row():
    text = 'a.wav,"The dog\nb.wav,Good morning.\nc.wav,"The cat\nd.wav,"Yes"\ne.wav,"No\nf.wav,Good"\n'
    rows = parse_delimited(text, ",", is_row=lambda line: ".wav," in line)
    assert [line for line, row in rows if isinstance(row, str)] == [1, 3, 5]
    assert [row for _, row in rows if not isinstance(row, str)] == [
        ["b.wav", "Good morning."], ["d.wav", "Yes"], ["f.wav", 'Good"']
    ]


def test_cells_have_no_limit():
    long = "word " * 60_000
    limit = csv.field_size_limit()
    assert cells(f'a,"{long}"\nb,{long}') == [["a", long], ["b", long]]
    assert csv.field_size_limit() == limit


def test_agrees_with_csv_on_what_that_writes():
    rng = random.Random(5)
    for delimiter in ",;":
        texts = ["".join(rng.choices('ab"",;\n |é\u2028', k=rng.randrange(8))) + "x" for _ in range(1500)]
        rows = [texts[i : i + 3] for i in range(0, len(texts), 3)]
        written = io.StringIO()
        csv.writer(written, delimiter=delimiter, lineterminator="\n").writerows(rows)
        assert cells(written.getvalue(), delimiter) == rows


@pytest.mark.parametrize("piece", ['a,"', 'a,"b\n', '"', 'b,""c\n', '1|"a ""b\n', 'a,"\n', '"\n', '","', "\r", '""a"'])
def test_linear_time(piece):
    text = piece * (200_000 // len(piece))
    started = time.perf_counter()
    for delimiter in ",|":
        parse_delimited('x,"' + text, delimiter, is_row=lambda line: ".wav" in line)
    assert time.perf_counter() - started < 3


def test_json():
    lines = parse_json_rows('\n{"a": 1}\r\n[1]\n{\n{"a": 1, "a": 2}\n' + "[" * 99_999 + "\n5\n" + "1" * 5000 + "\n\0")
    assert lines[0] == (2, dict(a=1)) and [n for n, _ in lines] == list(range(2, 10))
    assert all(isinstance(row, str) for _, row in lines[1:])
    assert "'a' is there twice" in lines[3][1] and "nested too deeply" in lines[4][1]
    assert parse_json_rows('[{"a": 1},\n{"a": 2}, 3]')[:2] == [(1, dict(a=1)), (2, dict(a=2))]


@pytest.mark.parametrize("depth", [33, 200, 900, 980, 995, 1000, 100_000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_deep_json_is_one_problem(depth, brackets):
    opening = brackets[0] if brackets == "[]" else '{"a":'
    (_, found), = parse_json_rows('{"text": ' + opening * depth + "1" + brackets[1] * depth + "}")
    assert found == "its JSON is nested too deeply"


def test_what_is_written_can_be_read_again():
    odd = dict(id="a", text="caf\udce9\u2028\x85\r\n\0", value=[1.5, dict(b=None)])
    line = format_json(odd)
    assert "\n" not in line and parse_json_rows(line) == [(1, odd)] and line.encode("utf-8")
    assert format_json(dict(text="Zoë")) == '{"text": "Zoë"}'
    for value in (float("nan"), float("inf"), -float("inf")):
        assert json.loads(format_json(dict(a=[value, (1, value)]), 1)) == dict(a=[None, [1, None]])


@dataclass
class Line:
    "A line of a manifest."

    text: str
    start: int
    ends: list
    gain: float = 1.0


def test_records_are_checked():
    good = dict(text="a", start=1, ends=[])
    assert parse_record(Line, good | dict(gain=2, more=5), "m:1") == Line("a", 1, [], 2)
    cases = (
        (good | dict(start="abc"), "m:1: start is 'abc'; use a whole number"),
        (good | dict(start=True), "m:1: start is 'True'; use a whole number"),
        (good | dict(ends="abc"), "m:1: ends is 'abc'; use a list"),
        (good | dict(text=None), "m:1: text is 'None'; use a string"),
        (dict(text="a"), "m:1: there is no start"),
        ([1], "m:1: it is no JSON object"),
        ("it isn't JSON", "m:1: it isn't JSON"),
    )
    for row, message in cases:
        with pytest.raises(OptionError) as e:
            parse_record(Line, row, "m:1")
        assert str(e.value) == message
