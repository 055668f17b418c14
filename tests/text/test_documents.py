"Documents: chapters and metadata of every format, and hostile files."
import os
import random
import struct
import tracemalloc
import zipfile

import pytest
from epubs import CHAPTERS, PAGE, make_png, write_epub
from helpers import raises_one_line

import metavoice.core.archives as archives
import metavoice.text.documents as documents
from metavoice.core.archives import Archive
from metavoice.core.errors import MetaVoiceError, TextError
from metavoice.text.chapters import parse_ranges, read_plain
from metavoice.text.documents import read_document
from metavoice.text.html_blocks import read_page


def texts(chapter):
    return [block.text for block in chapter.blocks]


def test_epub(tmp_path):
    book = read_document(write_epub(tmp_path / "a.epub"))
    assert (book.title, book.author, book.language, book.date) == ("Two Days", "Ann Reed", "en-GB", "2024-05-01")
    assert book.publisher == "Elm Press" and book.cover == make_png()
    assert [chapter.title for chapter in book.chapters] == list(CHAPTERS)
    assert texts(book.chapters[0])[:2] == ["The Ferry", "The ferry left at six."]
    assert [block.rule for block in book.chapters[0].blocks] == [False, False, True, False]


def test_epub_2_with_a_toc_of_parts_notes_and_pages_that_are_not_read(tmp_path):
    package = """<package><metadata><title>B</title><meta name="cover" content="c"/></metadata><manifest>
      <item id="c" href="c.png" media-type="image/png"/>
      <item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>
      <item id="t" href="title.html" media-type="application/xhtml+xml"/>
      <item id="p" href="part.html" media-type="application/xhtml+xml"/>
      <item id="a" href="a.html" media-type="application/xhtml+xml"/>
      <item id="b" href="b.html" media-type="application/xhtml+xml"/>
      <item id="n" href="notes.html" media-type="application/xhtml+xml"/></manifest>
      <spine toc="ncx"><itemref idref="t"/><itemref idref="p"/><itemref idref="a"/><itemref idref="b"/>
      <itemref idref="n" linear="no"/><itemref idref="missing"/></spine></package>"""
    point = '<navPoint><navLabel><text>{}</text></navLabel><content src="{}"/>{}</navPoint>'
    chapters = point.format("One", "a.html#start", point.format("a section", "a.html#s", ""))
    part = point.format("Part One", "part.html", chapters + point.format("Two", "b.html", ""))
    page = PAGE.format(
        '<p id="before">Before.</p><h2 id="start">One</h2><p>It<a epub:type="noteref" href="#n">1</a> rained.'
        '<span class="pagenum">12</span></p><h3 id="s">A section</h3><p>More.</p><img src="x" alt="a boat"/>'
        '<aside epub:type="footnote" id="n">A note.</aside>'
    )
    members = {
        "META-INF/container.xml": None, "OEBPS/book.opf": package, "OEBPS/c.png": b"image",
        "OEBPS/toc.ncx": f"<ncx><navMap>{part}</navMap></ncx>", "OEBPS/title.html": PAGE.format("<p>By Ann.</p>"),
        "OEBPS/part.html": PAGE.format("<h1>Part One</h1>"), "OEBPS/a.html": page,
        "OEBPS/b.html": PAGE.format("<p>Last.</p>"), "OEBPS/notes.html": PAGE.format("<p>Notes.</p>"),
    }
    book = read_document(write_epub(tmp_path / "a.epub", {}, **members))
    assert book.cover == b"image"
    found = {chapter.title: texts(chapter) for chapter in book.chapters}
    assert found == {
        "B": ["By Ann."], "Part One": ["Part One", "Before."], "One": ["One", "It rained.", "A section", "More."],
        "Two": ["Two", "Last."],
    }
    assert "a boat" in texts(read_document(tmp_path / "a.epub", alt_text=True).chapters[2])


def test_text_markdown_and_html(tmp_path):
    (tmp_path / "a.txt").write_text("CHAPTER I\n\nThe Ferry\n\nIt left.\n\nCHAPTER II\n\nHe\nstood.", encoding="utf-8")
    (tmp_path / "a.md").write_text("# Chapter 1\n\nIt *left*.\n\n# Chapter 2\n\nHe stood.", encoding="utf-16")
    (tmp_path / "a.html").write_bytes(
        b'<meta charset="iso-8859-1"><title>Caf\xe9</title><h1>Caf\xe9</h1><h2>A</h2><p>One.<h2>B</h2><p>Two.')
    one, two, three = (read_document(tmp_path / f"a.{ending}") for ending in ("txt", "md", "html"))
    assert [chapter.title for chapter in one.chapters] == ["CHAPTER I. The Ferry", "CHAPTER II"]
    assert texts(one.chapters[1]) == ["CHAPTER II", "He stood."]
    assert [texts(chapter) for chapter in two.chapters] == [["Chapter 1", "It left."], ["Chapter 2", "He stood."]]
    assert [chapter.title for chapter in three.chapters] == ["A", "B"] and three.title == "Café"
    assert texts(three.chapters[0]) == ["Café", "A", "One."]


def test_docx(tmp_path):
    w = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    body = "".join(
        f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>'
        for style, text in (("h", "The Ferry"), ("n", "It left."), ("h", "The Bridge"), ("n", "He stood."))
    )
    with zipfile.ZipFile(tmp_path / "a.docx", "w") as file:
        file.writestr("word/document.xml", f"<w:document {w}><w:body>{body}</w:body></w:document>")
        file.writestr("word/styles.xml", f'<w:styles {w}><w:style w:styleId="h"><w:name w:val="heading 1"/></w:style>'
                                         "</w:styles>")
    found = [texts(chapter) for chapter in read_document(tmp_path / "a.docx").chapters]
    assert found == [["The Ferry", "It left."], ["The Bridge", "He stood."]]


ENCRYPTED = '<encryption><EncryptedData><EncryptionMethod Algorithm="{}"/><CipherData/></EncryptedData></encryption>'
ENTITIES = '<!DOCTYPE p [<!ENTITY a SYSTEM "file:///etc/passwd"><!ENTITY b "&c;&c;"><!ENTITY c "boom">]>'


@pytest.mark.parametrize("changes, words", [
    ({"META-INF/encryption.xml": ENCRYPTED.format("http://www.w3.org/2001/04/xmlenc#aes256-cbc")}, ["DRM"]),
    ({"META-INF/encryption.xml": ENCRYPTED.replace("Algorithm", "x")}, ["DRM"]),
    ({"OEBPS/book.opf": "<package/>"}, ["there is no text"]),
    ({"OEBPS/book.opf": "\0\1"}, ["isn't XML"]),
    ({"OEBPS/c0.xhtml": bytes(17 << 20)}, ["too large", "16 MB"]),
    ({"OEBPS/cover.png": bytes(17 << 20)}, ["too large"]),
])
def test_hostile_epubs_are_refused_in_one_line(tmp_path, changes, words):
    with raises_one_line(TextError, "a.epub", *words):
        read_document(write_epub(tmp_path / "a.epub", **changes))


def test_fonts_may_be_obfuscated(tmp_path):
    fonts = ENCRYPTED.format("http://ns.adobe.com/pdf/enc#RC")
    assert len(read_document(write_epub(tmp_path / "a.epub", **{"META-INF/encryption.xml": fonts})).chapters) == 3


def test_entities_paths_and_addresses_lead_nowhere(tmp_path):
    (tmp_path / "secret.xhtml").write_text(PAGE.format("<p>secret</p>"), encoding="utf-8")
    links = ["../../secret.xhtml", "/etc/passwd", "http://127.0.0.1:1/a.xhtml", f"file://{tmp_path}/secret.xhtml"]
    items = "".join(f'<item id="x{n}" href="{link}" media-type="text/html"/>' for n, link in enumerate(links))
    spine = "".join(f'<itemref idref="x{n}"/>' for n in range(len(links)))
    package = (f'{ENTITIES}<package><metadata><title>&a;&b;</title></metadata><manifest>{items}'
               f'<item id="c" href="c0.xhtml"/></manifest><spine>{spine}<itemref idref="c"/></spine></package>')
    page = f'{ENTITIES}<html><body><p>&a; &b; One.</p><iframe src="file:///etc/passwd"></iframe></body></html>'
    book = read_document(write_epub(tmp_path / "a.epub", **{"OEBPS/book.opf": package, "OEBPS/c0.xhtml": page}))
    said = book.title + " ".join(text for chapter in book.chapters for text in texts(chapter))
    assert "One." in said and not any(word in said for word in ("root:", "secret", "boom"))


def test_zip_bombs_take_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 20 << 20)
    chapters = {f"C{n}": "<p>One.</p>" for n in range(20)}
    path = write_epub(tmp_path / "a.epub", chapters, **{f"OEBPS/c{n}.xhtml": b" " * (3 << 20) for n in range(20)})
    assert path.stat().st_size < 1_000_000
    tracemalloc.start()
    with raises_one_line(TextError, "is too large; at most 1 MB"):
        read_document(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20, peak


def test_a_directory_of_millions_is_refused_before_it_is_read(tmp_path):
    path = write_epub(tmp_path / "a.epub")
    data = bytearray(path.read_bytes())
    data[-10:-6] = struct.pack("<I", 1 << 30)
    path.write_bytes(data)
    with raises_one_line(TextError, "it lists too many files"):
        Archive(path)
    path.write_bytes(data[:-22] + b"PK\6\7" + bytes(16) + data[-22:])
    with raises_one_line(TextError, "it lists too many files"):
        Archive(path)


def test_absurd_numbers_of_chapters(tmp_path):
    (tmp_path / "a.md").write_text("# A\n\nb\n\n" * 4000, encoding="utf-8")
    with raises_one_line(TextError, "it has 4000 chapters; at most 3000"):
        read_document(tmp_path / "a.md")


def test_damaged_files_are_read_or_refused(tmp_path):
    whole, draw, read = bytearray(write_epub(tmp_path / "a.epub").read_bytes()), random.Random(0), 0
    for _ in range(150):
        data = bytearray(whole[: draw.randrange(len(whole))] if draw.random() < 0.2 else whole)
        for _ in range(draw.choice((1, 3, 20)) if data else 0):
            data[draw.randrange(len(data))] = draw.randrange(256)
        (tmp_path / "b.epub").write_bytes(data)
        try:
            read_document(tmp_path / "b.epub")
            read += 1
        except MetaVoiceError as e:
            assert "\n" not in str(e)
    assert 5 < read < 145


def test_random_pages_never_fail():
    draw = random.Random(1)
    bits = ["<p>", "</p>", "<h1>", "<a href='#n1'>", "1", "</a>", "<sup>", "</sup>", "<table>", "<td>", "</tr>",
            "<pre>", "\n", "<br/>", "<title/>", "&amp;", "&#0;", "&x;", "<!--", "-->", "<![CDATA[", "]]>", "word ",
            "<svg>", "</svg>", "\0", "\ud800", "é", "<li>", "</ul>", "<span epub:type='pagebreak'>", "</span>",
            "<nav>", "</nav>"]
    for _ in range(300):
        page = read_page("".join(draw.choices(bits, k=draw.randrange(60))))
        assert all(block.text and 0 <= block.level <= 6 for block in page.blocks)


def test_selections():
    assert parse_ranges("1-3,7", 9) == [1, 2, 3, 7]


def test_a_table_of_contents_in_a_text_is_left_out():
    text = "CONTENTS\n\nChapter 1. A\nChapter 2. B\nChapter 3. C\n\nChapter 1. A\n\nOne.\n\nChapter 2. B\n\nTwo.\n"
    found = [texts(chapter) for chapter in read_plain(text).chapters]
    assert found == [["Chapter 1. A", "One."], ["Chapter 2. B", "Two."]]
    spaced = "Contents\n\nChapter 1\n\nChapter 2\n\nChapter 3\n\nChapter 1\n\nOne.\n\nChapter 2\n\nTwo.\n"
    found = [texts(chapter) for chapter in read_plain(spaced).chapters]
    assert found == [["Chapter 1", "One."], ["Chapter 2", "Two."]]


def test_a_pipe_is_no_archive_and_a_text_is_bounded(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.epub")
    with raises_one_line(TextError, "it is a pipe or a device, not a file"):
        read_document(tmp_path / "a.epub")
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 10)
    (tmp_path / "a.txt").write_text("The dog slept.")
    with raises_one_line(TextError, "it has more than 10 bytes"):
        read_document(tmp_path / "a.txt")
