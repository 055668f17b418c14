"E-books made from scratch, for the tests of several rooms."
import struct
import zipfile
import zlib

CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
)
PAGE = '<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops"><body>{}</body></html>'
CHAPTERS = {
    "The Ferry": "<p>The ferry left at six.</p><p>Nobody waved from the shore.</p><hr/><p>At noon it rained.</p>",
    "The Bridge": "<p>The old man stood on the bridge.</p>",
    "The Dog": "<p>The dog slept.</p>",
}


def make_png(width=30, height=40):
    "Return an image of one colour."

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"".join(b"\0" + b"\x50\x80\xa0" * width for _ in range(height)))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def epub_members(chapters=CHAPTERS):
    "Return the members of an EPUB 3 file with a page for each chapter."
    items, spine, links, members = "", "", "", {}
    for n, (title, body) in enumerate(chapters.items()):
        items += f'<item id="c{n}" href="c{n}.xhtml" media-type="application/xhtml+xml"/>'
        spine += f'<itemref idref="c{n}"/>'
        links += f'<li><a href="c{n}.xhtml">{title}</a></li>'
        members[f"OEBPS/c{n}.xhtml"] = PAGE.format(f"<h1>{title}</h1>{body}")
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>'
        "<dc:title>Two Days</dc:title><dc:creator>Ann Reed</dc:creator><dc:language>en-GB</dc:language>"
        "<dc:date>2024-05-01</dc:date><dc:publisher>Elm Press</dc:publisher></metadata><manifest>"
        '<item id="nav" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>'
        '<item id="cover" href="cover.png" properties="cover-image" media-type="image/png"/>'
        f"{items}</manifest><spine>{spine}</spine></package>"
    )
    nav = PAGE.format(f'<nav epub:type="toc"><ol>{links}</ol></nav>')
    return {
        "mimetype": "application/epub+zip", "META-INF/container.xml": CONTAINER, "OEBPS/book.opf": package,
        "OEBPS/nav.xhtml": nav, "OEBPS/cover.png": make_png(), **members,
    }


def write_epub(path, chapters=CHAPTERS, **changes):
    "Write an e-book; changes are members by their names, None leaves one out."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in (epub_members(chapters) | changes).items():
            if data is not None:
                file.writestr(name, data)
    return path
