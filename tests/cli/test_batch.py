"`metavoice batch`."
import os
from pathlib import Path

import pytest

QUICK = ["--vocoder", "codec", "--no-denoise", "--takes", "1"]


def test_rows_are_spoken_and_failures_reported(run):
    Path("m.csv").write_text("id,text\ndog,The dog slept.\nsmile,😀!\n", encoding="utf-8")
    code, out, err = run("batch", "m.csv", "--out", "spoken", *QUICK)
    assert code == 1 and sorted(os.listdir("spoken")) == ["dog.wav", "results.jsonl"]
    assert "1 spoken, 0 done before, 1 failed, of 2 rows" in out
    assert err.endswith("\n") and "metavoice: smile: there is nothing to say in '😀!'" in err
    Path("m.csv").write_text("id,text\ndog,The dog slept.\n")
    assert run("batch", "m.csv", "--out", "spoken", *QUICK)[:2] == (0, "0 spoken, 1 done before, 0 failed, of 1 rows\n")


@pytest.mark.parametrize("argv,words", [
    (["no.csv", "--out", "d"], ["can't read the table no.csv: No such file"]),
    (["m.csv", "--out", "d", "--workers", "2"], ["add --ray"]),
    (["m.csv"], ["required: --out"]),
    (["m.csv", "--out", "m.csv"], ["m.csv"]),
    (["m.csv", "--out", "d", "--format", "aac"], ["'aac'"]),
    (["m.csv", "--out", "d", "--voice", "nobody.wav"], ["no such file"]),
])
def test_bad_input(refused, argv, words):
    Path("m.csv").write_text("text\nHello.\n")
    refused("batch", *argv, words=words)
