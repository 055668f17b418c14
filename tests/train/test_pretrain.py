"Pretraining: a dry run of every stage at the command line, and input that can't be used."
from pathlib import Path

import pytest
import torch

from metavoice.cli.main import main
from metavoice.core.errors import OptionError
from metavoice.train.pretrain import Pretrainer
from metavoice.train.corpus import Corpus

ROOT = Path(__file__).parents[1]


def test_a_dry_run_makes_a_bundle_that_speaks_its_own_shape(demo_corpus, tmp_path, capsys):
    assert main(["pretrain", "--size", "tiny", "--steps", "2", "--corpus", str(demo_corpus.path), "--out", str(tmp_path/"run"), "-q"]) == 0
    assert "bundle" in capsys.readouterr().out
    from metavoice.bundle.load import load_bundle
    bundle = load_bundle(tmp_path/"run"/"bundle")
    assert set(bundle.parts) == {"tokeniser", "first", "second", "codec", "speaker_encoder", "mbd", "listener"}
    codes = bundle.codec.encode(demo_corpus.audio(0)[None])
    assert codes.shape[1] == 8 and bundle.codec.decode(codes).isfinite().all()
    # again: every stage is finished, nothing is trained twice
    before = (tmp_path/"run"/"first"/"state.pt").read_bytes()
    assert main(["pretrain", "--stage", "first", "--size", "tiny", "--steps", "2", "--corpus", str(demo_corpus.path), "--out", str(tmp_path/"run"), "-q"]) == 0
    assert torch.load(tmp_path/"run"/"first"/"state.pt", weights_only=True)["step"] == 2 and len(before)
    for stage in ("codec", "first", "second", "decoder", "mbd"): assert (tmp_path/"run"/stage/"curves.png").read_bytes().startswith(b"\x89PNG")
    # from there on: what speech is in codes stays, what speaks them learns
    assert main(["pretrain", "--start", str(tmp_path/"run"/"bundle"), "--size", "tiny", "--steps", "2", "--corpus", str(demo_corpus.path), "--out", str(tmp_path/"more"), "-q"]) == 0
    further = load_bundle(tmp_path/"more"/"bundle")
    assert not (tmp_path/"more"/"codec").exists() and further.tokeniser.to_json() == bundle.tokeniser.to_json()
    assert torch.equal(further.codec.quantiser.codebooks, bundle.codec.quantiser.codebooks) and torch.equal(further.codec.encode(demo_corpus.audio(0)[None]), codes)
    for part, name in (("first", "transformer.wpe.weight"), ("second", "transformer.wpe.weight"), ("codec", "filters.weight")):
        old, new = (getattr(b, part).state_dict()[name] for b in (bundle, further))
        assert old.shape == new.shape and not torch.equal(old, new) and (old-new).abs().mean() < .1*old.abs().mean()

@pytest.mark.parametrize("options, error", [(dict(stage="third"), "unknown stage 'third'"), (dict(stage="mbd"), "run the stages before this one")])
def test_what_cant_be_run_is_told(demo_corpus, tmp_path, options, error):
    with pytest.raises(OptionError, match=error): Pretrainer(tmp_path, size="tiny", corpus=demo_corpus.path).run(**options)

def test_unknown_size_and_missing_corpus(tmp_path, capsys):
    with pytest.raises(OptionError, match="unknown size 'huge'"): Pretrainer(tmp_path, size="huge")
    with pytest.raises(OptionError, match="manifest.jsonl is missing"): Corpus(tmp_path/"nothing")
    with pytest.raises(SystemExit): main(["pretrain", "--hours", "0"])
    assert "isn't allowed" in capsys.readouterr().err
