"Training of multi-band diffusion: the loss of the velocity, and initialisation from data."
import pytest
import torch

from metavoice.core.errors import OptionError
from metavoice.models.ddpm import NoiseSchedule
from metavoice.models.mbd import make_mbd
from metavoice.train.diffusion import diffusion_loss, init_latent_scaling, small_unet_config


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_latents_start_at_unit_deviation():
    mbd, latent = make_mbd(small_unet_config(4), n_bands=1), 5 + 10 * torch.randn(3, 4, 50, generator=seeded(0))
    conv = mbd.bands[0].unet.conv_codec
    with torch.no_grad():
        normalised = latent - latent.mean((0, 2), keepdim=True)
        before = conv(normalised / latent.std((0, 2), keepdim=True))
    init_latent_scaling(mbd, latent)
    torch.testing.assert_close(conv(latent), before, atol=1e-4, rtol=1e-4)


def test_loss_of_the_velocity():
    schedule, x, seen = NoiseSchedule(prediction="velocity"), torch.randn(4, 1, 4000, generator=seeded(0)), []

    def zero(noisy, steps, latent):
        seen.append(steps)
        return torch.zeros_like(noisy)

    loss = diffusion_loss(zero, schedule, x, None, seeded(1), loss_type="velocity")
    assert abs(loss - 1) < .1, "a velocity has unit power"
    for seed in range(8):
        diffusion_loss(zero, schedule, x, None, seeded(seed), start=99)
    assert max(int(steps.max()) for steps in seen[1:]) <= 99
    with pytest.raises(OptionError, match="velocity"):
        diffusion_loss(zero, NoiseSchedule(), x, None, seeded(1), loss_type="velocity")
