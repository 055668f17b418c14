"NanoCodec: the quantiser's window, and synthesis that doesn't depend on what comes later."
import pytest
import torch

from metavoice.models.codec import Codec
from metavoice.models.nano_codec import NanoCodec, NanoCodecConfig, ResidualQuantiser, pulse_train

SMALL = dict(n_fft=160, hop=80, n_mels=20, width=16, hidden=32, encoder_blocks=2, decoder_blocks=2, latent_dim=8,
             n_codebooks=4, codebook_size=16)


def make_codec(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = NanoCodec(NanoCodecConfig(**SMALL, **options)).eval().requires_grad_(False)
        codec.quantiser.codebooks.normal_()
    return codec


def random_samples(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("finest_blocks, parts", [(0, 2), (2, 4)])
def test_shapes(finest_blocks, parts):
    codec = make_codec(finest_blocks=finest_blocks)
    assert isinstance(codec, Codec) and codec.synthesis_hop == 80//parts
    codes = codec.encode(random_samples(2, 1001)*.1)  # padded to 13 frames
    assert codes.shape == (2, 4, 13) and codes.min() >= 0 and codes.max() < 16
    assert codec.latent(codes).shape == (2, 8, 13)
    pitch, voice, breath = codec.predict_filters(codec.latent(codes))
    assert pitch.shape == (2, 13*parts) and voice.shape == breath.shape
    assert codec.decode(codes[:, :2]).shape == (2, 13*80)


def test_residual_is_averaged_over_the_window():
    "The third codebook codes the mean of what the first two leave, over the frames that exist."
    quantiser = ResidualQuantiser(4, 16, 8, window=3)
    residual = random_samples(1, 5, 8)
    for level in (0, 1, 3):
        assert quantiser.level_input(residual, level) is residual
    pooled = quantiser.level_input(residual, 2)
    torch.testing.assert_close(pooled[:, 1:4], (residual[:, :3]+residual[:, 1:4]+residual[:, 2:])/3)
    torch.testing.assert_close(pooled[:, 0], residual[:, :2].mean(1))
    assert ResidualQuantiser(4, 16, 8).level_input(residual, 2) is residual


def test_vocoder_depends_on_the_beginning_only():
    "Samples before the last frame don't change when more frames follow, as streaming needs."
    codec = make_codec()
    pitch = torch.full((1, 26), 7.)
    voice, breath = (random_samples(1, 81, 26) for _ in range(2))
    whole = codec.vocode(pitch, voice, breath)
    part = codec.vocode(pitch[:, :20], voice[..., :20], breath[..., :20])
    assert torch.equal(part, codec.vocode(pitch[:, :20], voice[..., :20], breath[..., :20]))
    torch.testing.assert_close(part[:, :16*40], whole[:, :16*40], atol=1e-5, rtol=1e-4)


def test_noise_seed():
    codec = make_codec()
    pitch, filters = torch.full((1, 8), 7.), torch.zeros(1, 81, 8)
    same, again, other = (codec.vocode(pitch, filters, filters, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(same, again) and not torch.equal(same, other)


def test_phase_of_the_first_pulse():
    pitch, period = torch.full((1, 5), 7.), 24000/128
    first, later = (pulse_train(pitch, 40, 24000, torch.tensor([[begin]])) for begin in (0., .5))
    assert first.argmax().item() == pytest.approx(period, abs=2)
    assert later.argmax().item() == pytest.approx(period/2, abs=2)
