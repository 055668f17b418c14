"The noise schedule and the samplers, against audiocraft's outputs and a case with an exact solution."
import pytest
import torch
from helpers import assert_near

from metavoice.core.errors import OptionError
from metavoice.models.ddpm import NoiseSchedule, draw_noise, sample_diffusion


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def no_noise(shape):
    raise AssertionError("the solver drew noise")


@torch.no_grad()
def sample_band(band, x, latent, seed, steps=20):
    generator = seeded(seed)
    return band.restore(
        sample_diffusion(band.unet, band.schedule, x, latent, lambda shape: draw_noise(shape, generator), steps)
    )


def test_schedule_is_that_of_audiocraft(mbd, mbd_tensor):
    for schedule in (NoiseSchedule(), *(band.schedule for band in mbd.bands)):
        assert_near(schedule.betas, mbd_tensor("betas"), 1e-6)


def test_samples_are_those_of_audiocraft(golden_band, mbd_tensor):
    band, i = golden_band
    assert_near(sample_band(band, mbd_tensor("x"), mbd_tensor("cond"), 100 + i), mbd_tensor(f"gen{i}"))


def test_samples_at_listed_steps_are_those_of_audiocraft(golden_band, mbd_tensor):
    band, i = golden_band
    expected = mbd_tensor(f"gen5_{i}")
    assert_near(sample_band(band, mbd_tensor("x"), mbd_tensor("cond"), 200 + i, [999, 700, 400, 100, 0]), expected)


def test_steps_from_the_middle():
    schedule = NoiseSchedule()
    expected = [999 - 50 * i for i in range(20)] + [0]
    assert schedule.timesteps(20) == schedule.timesteps(20, start=999) == expected
    assert schedule.timesteps(3, start=299) == [299, 199, 99, 0]
    for start in (0, -1, 1000):
        with pytest.raises(OptionError, match=f"from step {start}"):
            schedule.timesteps(5, start=start)


def test_multistep_draws_no_noise(plain_mbd, mbd_tensor):
    band, x, latent = plain_mbd.bands[1], mbd_tensor("x"), mbd_tensor("cond")
    assert sample_diffusion(band.unet, band.schedule, x, latent, no_noise, 5, solver="multistep").isfinite().all()
    with pytest.raises(OptionError, match="euler"):
        sample_diffusion(band.unet, band.schedule, x, latent, no_noise, 5, solver="euler")


def test_multistep_converges():
    "For Gaussian data the deterministic path has an exact solution: x times the deviation of the data."
    schedule, deviation = NoiseSchedule(prediction="noise", clip=0.0), 0.3
    bars = schedule.alpha_bars.tolist()

    def expected_noise(x, t, _):
        return (1 - bars[t]) ** 0.5 * x / (bars[t] * deviation**2 + 1 - bars[t])

    def sample(n):
        return sample_diffusion(expected_noise, schedule, x, None, None, n, solver="multistep")

    x = torch.randn(1, 1, 20000, generator=seeded(0))
    exact = sample(999)
    errors = [float((sample(n) - exact).std() / exact.std()) for n in (5, 10, 20)]
    assert errors[0] > errors[1] > errors[2] and errors[1] < 0.1, errors
    assert abs(float(exact.std()) / deviation - 1) < 0.05
