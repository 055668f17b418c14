"Fixtures of the tests of `metavoice.bundle`: a tiny model, its bundle, and a folder in the released layout."
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from metavoice.bundle.load import load_bundle
from metavoice.bundle.write import write_bundle
from metavoice.core.layout import TokenLayout
from metavoice.models.gpt import GPT, GPTConfig
from metavoice.models.listener import CTCScorer, CTCScorerConfig
from metavoice.models.mbd import fit_band_processors, make_mbd
from metavoice.models.nano_codec import NanoCodec, NanoCodecConfig
from metavoice.models.speaker_encoder import SpeakerEncoder
from metavoice.models.unet import UNetConfig
from metavoice.text.tokeniser import SPLIT_PATTERN, Tokeniser


@pytest.fixture(scope="session")
def sample_file():
    "A recording of the repository."
    return Path(__file__).parents[2] / "nbs" / "samples" / "awb_1.ogg"


@pytest.fixture(scope="session")
def tiny_unet_config():
    return UNetConfig(latent_dim=8, hidden=8, depth=2, growth=2.0, kernel=24, stride=12)


@pytest.fixture(scope="session")
def tiny_parts(tiny_unet_config):
    "A tiny network for each part of a bundle; not to be changed."
    torch.manual_seed(0)
    layout = TokenLayout(text_ranks=260)
    shape = dict(n_layer=1, n_head=2, n_embd=16, block_size=32, swiglu_multiple_of=16)
    second = GPTConfig(
        **shape, vocab_sizes=[layout.second_vocab, 1025], target_vocab_sizes=[1025] * 6, causal=False
    )
    codec = NanoCodec(NanoCodecConfig(width=16, hidden=16, encoder_blocks=2, decoder_blocks=2, latent_dim=8)).eval()
    torch.nn.init.normal_(codec.quantiser.codebooks)
    mbd = make_mbd(tiny_unet_config, n_bands=2).eval()
    fit_band_processors(mbd, torch.randn(2, 4800))
    return dict(
        tokeniser=Tokeniser.train(["the cat sat on the mat"], 260, SPLIT_PATTERN, name="tiny"),
        first=GPT(GPTConfig(**shape, vocab_sizes=[layout.first_vocab])).eval(),
        second=GPT(second).eval(),
        codec=codec,
        speaker_encoder=SpeakerEncoder().eval(),
        mbd=mbd,
        listener=CTCScorer(CTCScorerConfig(phones=3, alphabet=" ab", width=16, wide=16, hidden=16, blocks=1)).eval(),
    )


@pytest.fixture(scope="session")
def tiny_bundle(tiny_parts, sample_file, tmp_path_factory):
    "The tiny model in our own format; not to be changed."
    return write_bundle(
        tmp_path_factory.mktemp("bundle") / "tiny",
        name="tiny",
        **tiny_parts,
        dtype="float32",
        minimum_reference=3,
        voices=dict(awb=(sample_file, "CMU Flite, voice awb")),
        licences=dict(first="Apache-2.0"),
        defaults=dict(guidance=2.0),
    )


@pytest.fixture
def bundle_copy(tiny_bundle, tmp_path):
    "A copy of the tiny bundle that a test may change."
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


@pytest.fixture
def release(tiny_parts, tmp_path):
    "The two stages and the speaker encoder in the released layout."
    folder = tmp_path / "release"
    folder.mkdir()
    t = tiny_parts["tokeniser"]
    tokenizer = dict(
        name=t.name, pat_str=t.pat_str, mergeable_ranks=t.mergeable_ranks, special_tokens=t.special_tokens, offset=0
    )
    for part in ("first", "second"):
        config = asdict(tiny_parts[part].config)
        content = dict(
            model={f"_orig_mod.{name}": tensor for name, tensor in tiny_parts[part].state_dict().items()},
            model_args=config,
            config=dict(causal=config["causal"]),
            meta=dict(speaker_cond=True, speaker_emb_size=256, tokenizer=tokenizer),
            optimizer=dict(step=1),
        )
        torch.save(content, folder / f"{part}_stage.pt")
    torch.save(dict(model_state=tiny_parts["speaker_encoder"].state_dict()), folder / "speaker_encoder.pt")
    return folder


@pytest.fixture(scope="session")
def read_all():
    "A function that loads a bundle with all its parts."

    def read(path):
        bundle = load_bundle(path, "cpu")
        for part in bundle.parts:
            getattr(bundle, part)
        return bundle

    return read
