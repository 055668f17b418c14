"NanoCodec: the quantiser's window, and synthesis that doesn't depend on what comes later."
import pytest
import torch

from metavoice.core.errors import BundleError
from metavoice.models.codec import Codec
from metavoice.models.nano_codec import NanoCodec, NanoCodecConfig, ResidualQuantiser, pulse_train

SMALL = dict(n_fft=160, hop=80, n_mels=20, width=16, hidden=32, encoder_blocks=2, decoder_blocks=2, latent_dim=8,
             n_codebooks=4, codebook_size=16)


def make_codec(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = NanoCodec(NanoCodecConfig(**SMALL | options)).eval().requires_grad_(False)
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


def test_frames_of_three_parts_and_joined_mels():
    "Six synthesis frames, and four mel frames, in a frame of the codec."
    codec = make_codec(finest_blocks=1, finest_split=3, hop=120, analysis_hop=30, synthesis_window=100)
    assert (codec.synthesis_hop, codec.synthesis_window, codec.mel_in.in_features) == (20, 100, 40)
    samples = random_samples(2, 1001)*.1
    codes = codec.encode(samples)
    assert codes.shape == (2, 4, 9) and codec.decode(codes).shape == (2, 9*120)
    pitch, voice, _ = codec.predict_filters(codec.latent(codes))
    assert pitch.shape == (2, 9*6) and voice.shape == (2, 51, 9*6)
    torch.testing.assert_close(codec.encode_latent(samples)[:1], codec.encode_latent(samples[:1]))


@pytest.mark.parametrize("wrong", [
    dict(hop=100, finest_blocks=1, finest_split=3), dict(hop=120, analysis_hop=40), dict(hop=81)
])
def test_frames_that_do_not_fit_are_refused(wrong):
    with pytest.raises(BundleError, match=f"hop is {wrong['hop']}; half of it must be a multiple of the"):
        make_codec(**wrong)


def test_each_first_code_is_an_entry_of_its_phone():
    codec = make_codec(phones=["pau", "a", "b"])
    codec.entry_phones.copy_(torch.tensor([0]*8 + [1]*7 + [2]))
    samples = random_samples(2, 640)*.1
    phones = torch.randint(3, (2, 8), generator=torch.Generator().manual_seed(2))
    codes, free = codec.encode(samples, phones), codec.encode(samples)
    assert torch.equal(codec.entry_phones[codes[:, 0]].long(), phones)
    latent = codec.encode_latent(samples)
    likeliest = codec.phone_log_probs(latent).argmax(-1)
    assert torch.equal(codec.entry_phones[free[:, 0]].long(), likeliest)
    assert torch.equal(codec.encode(samples, torch.full((2, 8), -1)), free)
    entries = codec.quantiser.codebooks[0, :8]
    nearest = torch.cdist(latent.mT.flatten(0, 1), entries).argmin(1).view(2, 8)
    assert torch.equal(codes[:, 0][phones == 0], nearest[phones == 0])


def test_noise_differs_between_rows_in_training_only():
    codec, filters = make_codec(), torch.zeros(2, 81, 8)
    for seed, same in ((0, True), (None, False)):
        rows = codec.vocode(torch.full((2, 8), 7.), filters, filters, seed=seed)
        assert torch.equal(*rows) == same


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
