"The grapheme-to-phoneme network: decoding, stress marks, its file."
import json
import os
from dataclasses import asdict

import numpy as np
import pytest

from metavoice.core.errors import BundleError
from metavoice.text.g2p import G2PConfig, GraphemeToPhoneme, default_g2p, load_g2p, save_g2p, tidy_stress
from metavoice.text.phonemizer import is_pronounceable

SMALL = G2PConfig(width=8, hidden=8, blocks=1, kernel=3)


def random_g2p(exceptions=None, seed=0):
    rng, c = np.random.default_rng(seed), SMALL
    shapes = {
        "letters.weight": (len(c.letters) + 1, 8), "accents.weight": (2, 8), "blocks.0.gain": (8,), "gain": (8,),
        "blocks.0.kernel": (3, 8), "blocks.0.up.weight": (8, 8), "blocks.0.up.bias": (8,),
        "blocks.0.down.weight": (8, 8),
        "head.weight": (2 * (len(c.symbols) + 1), 8), "head.bias": (2 * (len(c.symbols) + 1),),
    }  # fmt: skip
    return GraphemeToPhoneme(c, {name: rng.normal(size=shape) for name, shape in shapes.items()}, exceptions)


def test_the_words_of_everyday():
    g2p = default_g2p()
    for word, american, british in [("the", "ðə", "ðə"), ("of", "ʌv", "ɒv"), ("one", "wˈʌn", "wˈʌn"), ("A", "ˈA", "ˈA"),
                                    ("walked", "wˈɔkt", "wˈɔːkt")]:  # fmt: skip
        assert (g2p(word), g2p(word, "british")) == (american, british)


@pytest.mark.parametrize("word", ["zorblat", "Kowalczyk", "quixotry", "don't", "blorbing", "xylorimba"])
@pytest.mark.parametrize("accent", ["american", "british"])
def test_any_word_can_be_said(word, accent):
    said = default_g2p()(word, accent)
    assert is_pronounceable(said) and said.count("ˈ") == 1


def test_words_without_letters():
    for word in ("", "5", "世", "—"):
        assert random_g2p()(word) == ""


def test_case_and_foreign_letters_are_ignored():
    g2p = random_g2p()
    assert g2p("Dog") == g2p("dog") == g2p("d5og世")


def test_exceptions_come_first():
    g2p = random_g2p(dict(american={"one": "wˈʌn", "A": "ˈA"}))
    assert g2p("One") == "wˈʌn" and g2p("A") == "ˈA" != g2p("a") and g2p("one", "british") != "wˈʌn"


def test_accents_differ():
    g2p = random_g2p()
    assert not np.allclose(g2p.logits("dog", "american"), g2p.logits("dog", "british"))


@pytest.mark.parametrize("written, tidy", [
    ("kˈæt", "kˈæt"), ("ˈkæt", "kˈæt"), ("kætˈ", "kˈæt"), ("bˈOˈI", "bˈOˌI"), ("bˌOˈI", "bˌOˈI"),
    ("", ""), ("ˈˌA", "ˈA"), ("pst", "pst"), ("bˌObI", "bˈObI"),
])  # fmt: skip
def test_stress(written, tidy):
    assert tidy_stress(written) == tidy


def test_file(tmp_path):
    g2p = random_g2p(dict(american={"one": "wˈʌn"}))
    save_g2p(g2p, tmp_path / "g.safetensors", "Apache-2.0")
    again = load_g2p(tmp_path / "g.safetensors")
    assert again.config == g2p.config and again.exceptions == g2p.exceptions
    assert np.allclose(again.logits("dog", "british"), g2p.logits("dog", "british"), atol=0.05)


def test_broken_files(tmp_path):
    with pytest.raises(BundleError, match="nowhere"):
        load_g2p(tmp_path / "nowhere.safetensors")
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(BundleError, match="can't read the grapheme-to-phoneme network"):
        load_g2p(tmp_path / "no.safetensors")
    with pytest.raises(BundleError, match="lacks head.weight"):
        GraphemeToPhoneme(SMALL, {n: a for n, a in random_g2p().tensors.items() if n != "head.weight"})


def test_the_file_of_the_package_is_small_and_has_a_licence():
    from pathlib import Path

    from safetensors import safe_open

    import metavoice

    path = Path(metavoice.__file__).parent / "g2p.safetensors"
    assert path.stat().st_size < 500_000
    with safe_open(path, "np") as f:
        about = f.metadata()
    assert "Apache-2.0" in about["licence"] and json.loads(about["config"])["accents"] == ["american", "british"]


def hostile_g2p(path, size=None, shape=(4,), **about):
    "Write a network of one tensor whose facts are given."
    about = dict(config=json.dumps(asdict(SMALL)), exceptions="{}") | about
    tensor = dict(dtype="F16", shape=shape, data_offsets=[0, 2 * int(np.prod(shape))])
    header = json.dumps({"__metadata__": about, "letters.weight": tensor}).encode()
    path.write_bytes((size or len(header)).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + tensor["data_offsets"][1])


def small_config(**changes):
    return json.dumps(asdict(SMALL) | changes)


@pytest.mark.parametrize("about, words", [
    (dict(size=60 << 20), "has a header of 62914560 bytes"),
    (dict(shape=(10**6, 4)), "letters.weight has the shape (1000000, 4)"),
    (dict(config=small_config(blocks=10**8)), "blocks is 100000000"),
    (dict(config=small_config(width=0)), "width is 0"),
    (dict(config=small_config(slots="two")), "slots is 'two'"),
    (dict(config=small_config(letters=5)), "letters is 5"),
    (dict(config=small_config(accents=[5])), "accents is (5,)"),
    (dict(config="[" * 100_000), "nested too deeply"),
    (dict(exceptions="[]"), "its exceptions are []"),
    (dict(exceptions='{"american": {"a": 5}}'), "its exceptions are {'a': 5}"),
])  # fmt: skip
def test_hostile_files(tmp_path, about, words):
    hostile_g2p(tmp_path / "g.safetensors", **about)
    with pytest.raises(BundleError) as error:
        load_g2p(tmp_path / "g.safetensors")
    assert words in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 300
