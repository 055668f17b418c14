"Pretraining: a dry run of every stage, continuing from its bundle, and invalid input."
import pytest
import torch
from tiny import write_tiny_bundle

from metavoice.bundle.load import load_bundle
from metavoice.cli import main
from metavoice.core.errors import OptionError
from metavoice.generate.tts import TTS
from metavoice.train.corpus import Corpus
from metavoice.train.diffusion import SHALLOW_SAMPLING
from metavoice.train.pretrain import PRETRAIN_STAGES, PRETRAIN_TIME_SHARES, Pretrainer

PARTS = {"tokeniser", "first", "second", "codec", "speaker_encoder", "mbd", "listener"}
WEIGHTS = [
    ("first", "transformer.wpe.weight"),
    ("second", "transformer.wpe.weight"),
    ("codec", "filters.weight"),
]


def test_dry_run_and_continuation(demo_corpus, tmp_path, capsys):
    "Two steps a stage give a bundle that loads; a finished stage isn't trained again; a bundle can be trained further."

    def pretrain(out, *options):
        arguments = ["--size", "tiny", "--steps", "2", "--corpus", str(demo_corpus.path), "--out", str(tmp_path / out)]
        return main(["pretrain", *options, *arguments, "-q"])

    assert pretrain("run") == 0 and "bundle" in capsys.readouterr().out
    bundle, sound = load_bundle(tmp_path / "run" / "bundle"), demo_corpus.audio(0)[None]
    assert set(bundle.parts) == PARTS and bundle.defaults["mbd"] == SHALLOW_SAMPLING
    made = TTS(bundle).synthesise("Yes.", seed=1, vocoder="mbd", takes=1, denoise=False)
    assert made.samples.isfinite().all()
    codes = bundle.codec.encode(sound)
    assert codes.shape[1] == 8 and bundle.codec.decode(codes).isfinite().all()

    state = tmp_path / "run" / "first" / "state.pt"
    before = state.read_bytes()
    assert pretrain("run", "--stage", "first") == 0
    assert torch.load(state, weights_only=True)["step"] == 2 and len(before)
    for stage in ("codec", "first", "second", "decoder", "mbd"):
        assert (tmp_path / "run" / stage / "curves.png").read_bytes().startswith(b"\x89PNG")

    # the continued training keeps the codec's codes and trains the other parts
    assert pretrain("more", "--start", str(tmp_path / "run" / "bundle")) == 0
    further = load_bundle(tmp_path / "more" / "bundle")
    assert not (tmp_path / "more" / "codec").exists()
    assert further.tokeniser.to_json() == bundle.tokeniser.to_json()
    assert torch.equal(further.codec.quantiser.codebooks, bundle.codec.quantiser.codebooks)
    assert torch.equal(further.codec.encode(sound), codes)
    for part, name in WEIGHTS:
        old, new = (getattr(b, part).state_dict()[name] for b in (bundle, further))
        assert old.shape == new.shape and not torch.equal(old, new)
        assert (old - new).abs().mean() < 0.1 * old.abs().mean()


@pytest.mark.parametrize(
    "stage, message", [("third", "unknown stage 'third'"), ("mbd", "run the stages before this one")]
)
def test_stages_that_cannot_run(demo_corpus, tmp_path, stage, message):
    with pytest.raises(OptionError, match=message):
        Pretrainer(tmp_path, size="tiny", corpus=demo_corpus.path).run(stage)


def test_diffusion_is_trained_if_the_size_or_the_start_has_it(tmp_path):
    tiny, nano = (Pretrainer(tmp_path, size=size, hours=1) for size in ("tiny", "nano"))
    assert tuple(tiny.stages) == PRETRAIN_STAGES
    assert nano.stages == [stage for stage in PRETRAIN_STAGES if stage != "mbd"]
    with pytest.raises(OptionError, match="unknown stage 'mbd'; use one of corpus, .* decoder, bundle or all"):
        nano.run("mbd")
    assert not list(tmp_path.iterdir())
    for start in (None, write_tiny_bundle(tmp_path / "plain"), write_tiny_bundle(tmp_path / "diffusing", mbd=True)):
        trainer = Pretrainer(tmp_path, size="nano", hours=1, start=start)
        assert trainer.has_mbd == ("mbd" in trainer.stages) == (start is not None and start.name == "diffusing")
        timed = set(PRETRAIN_TIME_SHARES) & set(trainer.stages) - ({"codec"} if start else set())
        assert sum(trainer.training_config(stage, 1e-3).minutes for stage in timed) == pytest.approx(60)


def test_unknown_size_and_missing_corpus(tmp_path):
    with pytest.raises(OptionError, match="unknown size 'huge'"):
        Pretrainer(tmp_path, size="huge")
    with pytest.raises(OptionError, match="manifest.jsonl is missing"):
        Corpus(tmp_path / "nothing")
