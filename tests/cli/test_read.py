"`metavoice read`: what it prints and writes, and its errors."
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from epubs import CHAPTERS, make_png, write_epub

from metavoice.audio.chapters import read_book_file

QUICK = ["--vocoder", "codec", "--no-denoise", "--takes", "1"]


@pytest.fixture(autouse=True)
def book(empty_folder):
    return write_epub("book.epub")


def test_chapters_are_listed_without_speaking(run):
    code, out, err = run("read", "book.epub", "--list", "--chapters", "2-")
    assert (code, err) == (0, "")
    title, two, three, total = out.splitlines()
    assert title == "Two Days by Ann Reed" and two.split()[0] == "2" and two.endswith("The Bridge")
    assert three.endswith("The Dog") and total.startswith("2 chapters, about 0:") and os.listdir() == ["book.epub"]
    assert run("read", "book.epub", "--dry-run", "--chapters", "2-") == (code, out, err)


def test_an_audiobook(run):
    Path("cover.png").write_bytes(make_png(8, 9))
    code, out, err = run("read", "book.epub", "--title", "Mine", "--cover", "cover.png", "--voice", "bf_emma", *QUICK)
    assert code == 0 and out.startswith("book.m4b: 0:") and "in 3 chapters" in out, err
    found = read_book_file("book.m4b")
    assert [title for title, *_ in found["chapters"]] == list(CHAPTERS)
    assert (found["tags"]["title"], found["tags"]["artist"], found["cover"]) == ("Mine", "Ann Reed", ("png", 8, 9))
    assert "book:" in err and "encoding:" in err and " left]" in err
    assert run("read", "book.epub", "-q", "--chapters", "3", *QUICK) == (0, "", "")  # replaces its own file
    assert [title for title, *_ in read_book_file("book.m4b")["chapters"]] == ["The Dog"]


def test_a_folder_and_a_script(run):
    Path("play.txt").write_text("Ann: Good morning.\n\nTom: No.\n", encoding="utf-8")
    Path("cast.tsv").write_text("name\tvoice\nAnn\tbf_emma\nTom\tam_michael\n", encoding="utf-8")
    code, out, err = run("read", "play.txt", "--cast", "cast.tsv", "-o", "play", "--format", "flac", *QUICK)
    assert code == 0 and out.startswith("play: 0:") and out.endswith("in 1 chapter\n"), err
    assert os.listdir("play") == ["01 play.flac"]


@pytest.mark.parametrize("arguments, words", [
    (["none.epub"], ["none.epub", "No such file"]),
    (["book.pdf"], ["'.pdf'", "use .epub, .docx"]),
    (["book.epub", "--chapters", "4"], ["there are no chapters '4'; use 1 to 3"]),
    (["book.epub", "--chapters", ""], ["such as 1-3,7"]),
    (["book.epub", "-o", "a.wav"], ["'.wav'", "use .m4b, .m4a or .mp3"]),
    (["book.epub", "-o", "no/a.m4b"], ["there is no folder no"]),
    (["book.epub", "-o", "a", "--format", "m4b"], ["unknown format 'm4b'"]),
    (["book.epub", "--scene-pause", "11"], ["--scene-pause is '11'; use a number from 0 to 10"]),
    (["book.epub", "--bit-rate", "8"], ["--bit-rate is '8'"]),
    (["book.epub", "--cast", "no.tsv"], ["can't read the cast no.tsv"]),
    (["book.epub", "--workers", "2"], ["add --ray"]),
    (["book.epub", "--cover", "book.epub"], ["isn't a JPEG or PNG image"]),
    (["book.epub", "--voice", "nobody"], ["nobody"]),
])
def test_errors(refused, arguments, words):
    refused("read", *arguments, words=words)


def test_a_protected_book(refused):
    name = "META-INF/encryption.xml"
    write_epub("drm.epub", **{name: '<e><EncryptedData><EncryptionMethod Algorithm="x"/></EncryptedData></e>'})
    refused("read", "drm.epub", words=["drm.epub", "it is protected by DRM"])


def test_a_recording_is_kept(refused):
    Path("mine.m4b").write_text("mine")
    refused("read", "book.epub", "-o", "mine.m4b", words=["metavoice didn't make it", "--force"])


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_ctrl_c_and_the_same_command_again(run, command, clean_environment):
    arguments = ["read", "book.epub", "-o", "a.m4b", *QUICK, "--batch-size", "1"]  # one passage after another
    process = subprocess.Popen([*command, *arguments], env=clean_environment, stderr=subprocess.PIPE, text=True)
    while not list(Path().glob("a.m4b.parts/0*.flac")) and process.poll() is None:
        time.sleep(.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130 and "finished passages are kept; the same command continues" in err, err
    code, out, err = run(*arguments)
    assert code == 0 and "passages were there already" in out and os.path.exists("a.m4b"), err
