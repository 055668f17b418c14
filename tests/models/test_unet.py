"The U-Net against audiocraft's outputs, and packed convolutions: use, precision, changed weights, training."
import pytest
import torch
from helpers import assert_near

from metavoice.models.unet import PackableConv, PackedConv1d, column_span


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, PackableConv)]


@pytest.mark.parametrize("step", (0, 499, 999))
@torch.no_grad()
def test_output_is_that_of_audiocraft(golden_band, mbd_tensor, step):
    band, i = golden_band
    assert_near(band.unet(mbd_tensor("x"), step, mbd_tensor("cond")), mbd_tensor(f"unet{i}_{step}"))


def test_every_convolution_is_packed(plain_mbd, packed_mbd):
    with torch.no_grad():
        assert all(conv.packed_weight() is not None for conv in convolutions(packed_mbd))
        assert all(conv.packed_weight() is None for conv in convolutions(plain_mbd))
    plain, packed = plain_mbd.state_dict(), packed_mbd.state_dict()
    assert list(plain) == list(packed)
    assert all(torch.equal(a, b) for a, b in zip(plain.values(), packed.values()))


@torch.no_grad()
def test_bfloat16_products_are_near(plain_mbd, load_golden_mbd, mbd_tensor):
    narrow_mbd = load_golden_mbd().pack(torch.bfloat16, min_weights=0)
    for narrow, plain in zip(narrow_mbd.bands, plain_mbd.bands):
        got, expected = (band.unet(mbd_tensor("x"), 499, mbd_tensor("cond")) for band in (narrow, plain))
        assert got.dtype == torch.float32 and 0 < (got - expected).std() / expected.std() < 0.03


@torch.no_grad()
def test_changed_weights_are_noticed(load_golden_mbd, mbd_tensor):
    packed, plain = load_golden_mbd().pack().bands[1].unet, load_golden_mbd().bands[1].unet
    state = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    for unet in (packed, plain):
        for conv in convolutions(unet):
            conv.weight.mul_(0.5)
    args = mbd_tensor("x"), 9, mbd_tensor("cond")
    assert_near(packed(*args), plain(*args), 1e-6)
    packed.load_state_dict(state, assign=True)
    assert_near(packed(mbd_tensor("x"), 499, mbd_tensor("cond")), mbd_tensor("unet1_499"))


def test_packed_weights_can_be_trained(load_golden_mbd, mbd_tensor):
    unet = load_golden_mbd().bands[1].unet
    unet.pack()
    unet.requires_grad_(True)
    unet(mbd_tensor("x"), 9, mbd_tensor("cond")).square().mean().backward()
    for conv in convolutions(unet):
        assert conv.weight.grad is not None and conv.weight.grad.abs().sum() > 0


def test_weights_of_inference_mode_can_be_packed():
    with torch.inference_mode():
        conv, x = PackedConv1d(4, 4, 3, padding=1), torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))
        expected = conv(x)
        conv.pack()
        assert conv.packed_weight() is not None
        torch.testing.assert_close(conv(x), expected)


@torch.no_grad()
def test_condition_can_be_computed_once(plain_mbd, mbd_tensor):
    unet, latent = plain_mbd.bands[0].unet, mbd_tensor("cond")
    for length in (7680, 7001, 5000):
        x = mbd_tensor("x")[..., :length]
        condition = unet.condition(latent, unet.bottleneck_length(length))
        assert torch.equal(unet(x, 9, condition=condition), unet(x, 9, latent))


@pytest.mark.parametrize("shift, n_in, n_out, span", [(0, 5, 5, (0, 5)), (-2, 5, 5, (2, 5)), (9, 5, 5, (0, 0))])
def test_column_span(shift, n_in, n_out, span):
    assert column_span(shift, n_in, n_out) == span
