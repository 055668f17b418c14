"Multi-band diffusion against audiocraft 1.3.0's outputs; seeds, batches, packing, guidance, and its own format."
import json

import pytest
import torch
from helpers import assert_near
from safetensors.torch import load_file, save_file

from metavoice.core.errors import BundleError, OptionError
from metavoice.models.ddpm import NoiseSchedule
from metavoice.models.mbd import (
    MultiBandDiffusion,
    equalise,
    fit_band_processors,
    make_mbd,
    rms_envelope,
    split_bands,
)
from metavoice.train.diffusion import project_bands, small_unet_config


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def voiced(seconds=1.0, rows=2):
    "Harmonic tones whose level changes over time, (rows, time) at 24 kHz."
    t = torch.arange(int(24000 * seconds)) / 24000
    waves = []
    for row in range(rows):
        tone = sum(torch.sin(2 * torch.pi * (k * (110 + 30 * row) * t + row)) / k for k in range(1, 60))
        waves.append(tone * (0.02 + torch.sin(3 * t + row).square()))
    return torch.stack(waves) * 0.1


def test_layout(mbd):
    n = len(mbd.bands)
    assert mbd.sample_rate == 24000 and n in (2, 4)
    assert [band.unet.config.bilstm for band in mbd.bands] == [True, False, False, False][:n]
    has_processor = [band.processor is not None for band in mbd.bands]
    assert has_processor == {4: [False, False, True, True], 2: [False, True]}[n]
    assert not mbd.training


def test_processor_is_that_of_audiocraft(golden_band, mbd_tensor):
    band, i = golden_band
    if band.processor is None:
        pytest.skip(f"band {i} has no processor")
    assert_near(band.processor.restore(mbd_tensor("x")), mbd_tensor(f"proc{i}"))


def test_sound_is_that_of_audiocraft(mbd, mbd_tensor):
    expected = mbd_tensor("all")[:, 0]
    assert_near(mbd.generate(mbd_tensor("cond"), 7680, seeded(7)), expected)


def test_equaliser_is_that_of_audiocraft(mbd_tensor):
    assert_near(equalise(mbd_tensor("x"), mbd_tensor("eq_ref"), 24000, per_batch=True), mbd_tensor("eq"))


def test_bands_are_those_of_audiocraft(mbd_tensor):
    assert_near(split_bands(mbd_tensor("x")[:1], 24000, 8), mbd_tensor("bands8"))


def test_saving_and_loading(mbd, mbd_tensor, tmp_path):
    save_file(mbd.state_dict(), tmp_path / "mbd.safetensors")
    config = json.loads(json.dumps(mbd.config()))
    again = MultiBandDiffusion.from_config(config, load_file(tmp_path / "mbd.safetensors"))
    before, after = (model.generate(mbd_tensor("cond"), 7680, seeded(3), steps=3) for model in (mbd, again))
    assert_near(before, after, 1e-3)


def test_a_seed_gives_the_same_sound_in_any_batch(mbd, mbd_tensor):
    latent = mbd_tensor("cond")
    both = mbd.generate(latent, 5000, [seeded(1), seeded(2)], steps=5)
    assert torch.equal(both, mbd.generate(latent, 5000, [seeded(1), seeded(2)], steps=5))
    assert_near(mbd.generate(latent[1:], 5000, [seeded(2)], steps=5), both[1:], 1e-3)


def test_packed_rows_do_not_depend_on_the_batch(packed_mbd, mbd_tensor):
    latent = mbd_tensor("cond")
    both = packed_mbd.generate(latent, 5000, [seeded(1), seeded(2)], steps=3)
    assert_near(packed_mbd.generate(latent[1:], 5000, [seeded(2)], steps=3), both[1:], 1e-4)


def test_packed_and_plain_give_the_same_sound(plain_mbd, packed_mbd, mbd_tensor):
    decoded = mbd_tensor("eq_ref")[:, 0]
    plain, packed = (
        model(mbd_tensor("cond"), decoded, [seeded(1), seeded(2)], steps=4) for model in (plain_mbd, packed_mbd)
    )
    assert_near(packed, plain, 1e-3)


def test_the_global_generator_is_not_used(mbd, mbd_tensor):
    before = torch.get_rng_state()
    mbd(mbd_tensor("cond"), mbd_tensor("eq_ref")[:, 0], seeded(1), steps=2)
    assert torch.equal(before, torch.get_rng_state())


def test_missing_and_misshapen_weights(mbd):
    config, state = mbd.config(), dict(mbd.state_dict())
    name = "bands.1.unet.conv_codec.weight"
    with pytest.raises(BundleError, match=name):
        MultiBandDiffusion.from_config(config, state | {name: torch.zeros(3)})
    del state[name]
    with pytest.raises(BundleError, match="missing"):
        MultiBandDiffusion.from_config(config, state)


def test_impossible_arguments(mbd, mbd_tensor):
    latent = mbd_tensor("cond")
    for steps in (0, 1000, [5], [1, 2], [1000, 0]):
        with pytest.raises(OptionError):
            mbd.generate(latent, 7680, seeded(0), steps=steps)
    with pytest.raises(OptionError, match="latent"):
        mbd.generate(latent[:, :5], 7680, seeded(0))
    with pytest.raises(OptionError, match="frames"):
        mbd.generate(latent, 100, seeded(0))
    with pytest.raises(OptionError, match="generators"):
        mbd.generate(latent, 7680, [seeded(0)])


def perfect_velocity(schedule, clean):
    "A function in place of a U-Net that knows the clean signal."
    bars = schedule.alpha_bars.tolist()

    def velocity(noisy, step, condition=None):
        return (bars[step] ** 0.5 * noisy - clean) / (1 - bars[step]) ** 0.5

    return velocity


def make_perfect(mbd, x, decoded):
    "Replace the networks of a model by functions that know the clean signal `x` (batch, time)."
    for band, clean in zip(mbd.bands, project_bands(mbd, x, decoded).detach()):
        band.unet.bottleneck_length = lambda n: n
        band.unet.condition = lambda *_: 0.0
        band.unet.forward = perfect_velocity(band.schedule, clean)


@pytest.mark.parametrize("guided", (False, True))
@pytest.mark.parametrize("solver", ("ancestral", "multistep"))
def test_a_perfect_model_restores_the_sound_from_the_decoding(guided, solver):
    torch.manual_seed(0)
    x = voiced()
    decoded = 0.8 * x + 0.01 * torch.randn_like(x)
    schedule = NoiseSchedule(prediction="velocity", clip=0.0)
    mbd = make_mbd(small_unet_config(4), n_bands=2, guided=guided, schedule=schedule).eval()
    fit_band_processors(mbd, x)
    make_perfect(mbd, x, decoded)
    latent, options = torch.zeros(2, 4, 10), dict(steps=6, start=599, solver=solver)
    sound = mbd.generate(latent, x.shape[-1], [seeded(1), seeded(2)], decoded=decoded, **options)
    assert_near(sound, x, 0.1)
    equalised = mbd(latent, decoded, [seeded(1), seeded(2)], **options)
    assert torch.cosine_similarity(equalised, x).min() > 0.98
    assert (equalised.std(-1) / decoded.std(-1) - 1).abs().max() < 0.1


@pytest.mark.parametrize("guided", (False, True))
def test_decoding_is_required_and_must_fit(guided):
    mbd = make_mbd(small_unet_config(4), n_bands=2, guided=guided).eval()
    fit_band_processors(mbd, voiced())
    x, latent, generators = voiced(), torch.zeros(2, 4, 10), [seeded(1), seeded(2)]
    if guided:
        with pytest.raises(OptionError, match="give decoded"):
            mbd.generate(latent, 24000, generators)
        with pytest.raises(OptionError, match="give decoded"):
            project_bands(mbd, x)
        assert MultiBandDiffusion.from_config(json.loads(json.dumps(mbd.config()))).guided
    with pytest.raises(OptionError, match="decoded"):
        mbd.generate(latent, 24000, generators, start=599)
    with pytest.raises(OptionError, match="shape"):
        mbd.generate(latent, 24000, generators, start=599, decoded=x[:, 1:])


def test_dividing_by_the_level_makes_a_signal_level():
    x = voiced()[:, None]
    x = x / x.std()
    level = rms_envelope(x)
    assert level.shape == x.shape and (level > 0).all()
    parts = (x / level).unflatten(-1, (20, -1)).std(-1)
    assert parts.std() / parts.mean() < 0.2 < x.unflatten(-1, (20, -1)).std(-1).std()
    assert torch.allclose(rms_envelope(x[:1]), level[:1], atol=1e-5)
