"Multi-band diffusion against audiocraft 1.3.0's outputs, and the safety of its reader."
import json, pickle, sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from metavoice.core.errors import BundleError, OptionError
from metavoice.models.unet import PackableConv, UNet, UNetConfig
from metavoice.models.ddpm import NoiseSchedule, draw_noise, sample_diffusion
from metavoice.models.mbd import (
    MultiBandDiffusion, equalise, fit_band_processors, make_mbd, rms_envelope, split_bands
)
from metavoice.bundle.released import convert_band_config, load_released_mbd, omegaconf_to_container, safe_torch_load
from metavoice.train.diffusion import nano_unet_config, project_bands

RELEASED = "mbd_comp_8.pt"


@pytest.fixture(scope="module", params=("ordinary", "packed"))
def mbd(golden, request):
    model = load_released_mbd(golden / RELEASED)
    return model.pack() if request.param == "packed" else model

@pytest.fixture(scope="module")
def want(mbd_expected): return {k: torch.from_numpy(mbd_expected[k]) for k in mbd_expected}

def seeded(seed): return torch.Generator().manual_seed(seed)

def close(got, wanted, tolerance=1e-4):
    assert got.shape == wanted.shape
    error = (got - wanted).abs().max() / wanted.std()
    assert error <= tolerance, f"off by {error:.2e} of the standard deviation"

def sampled(band, x, latent, seed, steps=20):
    generator = seeded(seed)
    with torch.no_grad():
        return band.restore(sample_diffusion(band.unet, band.schedule, x, latent, lambda shape: draw_noise(shape, generator), steps))


def test_layout(mbd):
    assert mbd.sample_rate == 24000 and len(mbd.bands) == 4
    assert [b.unet.config.bilstm for b in mbd.bands] == [True, False, False, False]
    assert [b.processor is not None for b in mbd.bands] == [False, False, True, True]
    assert not mbd.training

@pytest.mark.parametrize("step", (0, 499, 999))
@pytest.mark.parametrize("band", range(4))
@torch.no_grad()
def test_unet(mbd, want, band, step):
    close(mbd.bands[band].unet(want["x"], step, want["cond"]), want[f"unet{band}_{step}"])

@pytest.mark.parametrize("band", (2, 3))
def test_processor(mbd, want, band): close(mbd.bands[band].processor.restore(want["x"]), want[f"proc{band}"])

def test_schedule(mbd, want):
    for band in mbd.bands: close(band.schedule.betas, want["betas"], 1e-6)
    close(NoiseSchedule().betas, want["betas"], 1e-6)

@pytest.mark.parametrize("band", range(4))
def test_sampling(mbd, want, band):
    close(sampled(mbd.bands[band], want["x"], want["cond"], 100 + band), want[f"gen{band}"])

@pytest.mark.parametrize("band", range(4))
def test_sampling_listed_steps(mbd, want, band):
    close(sampled(mbd.bands[band], want["x"], want["cond"], 200 + band, [999, 700, 400, 100, 0]), want[f"gen5_{band}"])

def test_all_bands(mbd, want):
    close(mbd.generate(want["cond"], 7680, seeded(7)), want["all"][:, 0])

def test_equaliser(want):
    close(equalise(want["x"], want["eq_ref"], 24000, together=True), want["eq"])

def test_bands(want): close(split_bands(want["x"][:1], 24000, 8), want["bands8"])

def test_through_our_own_layout(mbd, want, tmp_path):
    save_file(mbd.state_dict(), tmp_path / "mbd.safetensors")
    again = MultiBandDiffusion.from_config(json.loads(json.dumps(mbd.config())), load_file(tmp_path / "mbd.safetensors"))
    one = [m.generate(want["cond"], 7680, seeded(3), steps=3) for m in (mbd, again)]
    close(*one, 1e-3)

def test_seed_whatever_the_batch(mbd, want):
    cond = want["cond"]
    both = mbd.generate(cond, 5000, [seeded(1), seeded(2)], steps=5)
    assert torch.equal(both, mbd.generate(cond, 5000, [seeded(1), seeded(2)], steps=5))
    close(mbd.generate(cond[1:], 5000, [seeded(2)], steps=5), both[1:], 1e-3)

def test_generating_leaves_the_global_generator_alone(mbd, want):
    before = torch.get_rng_state()
    mbd(want["cond"], want["eq_ref"][:, 0], seeded(1), steps=2)
    assert torch.equal(before, torch.get_rng_state())


class Wicked:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (open, (str(self.path), "w"))

@pytest.mark.parametrize("where", ("top", "cfg", "builtins"))
def test_wicked_pickle_does_not_run(tmp_path, where):
    ran, path = tmp_path / "ran", tmp_path / "mbd_comp_8.pt"
    class Evaluating:
        def __reduce__(self): return (eval, (f"open({str(ran)!r},'w')",))
    evil = Wicked(ran)
    torch.save(dict(top=evil, cfg={"n_bands": 1, "sample_rate": 24000, 0: dict(cfg=evil, model_state={}, processor_state={})},
                    builtins=Evaluating())[where], path)
    with pytest.raises(BundleError, match="would run"): load_released_mbd(path)
    assert not ran.exists()

def test_inert_names_leave_nothing_behind(golden):
    before = set(torch.serialization.get_safe_globals())
    content = safe_torch_load(golden / RELEASED)
    assert type(content[0]["cfg"]).__name__ == "Inert" and "omegaconf" not in sys.modules
    assert set(torch.serialization.get_safe_globals()) == before

def test_plain_pickle_is_refused(tmp_path):
    path = tmp_path / "old.pt"
    path.write_bytes(pickle.dumps(Wicked(tmp_path / "ran")))
    with pytest.raises(BundleError, match="can't read"): load_released_mbd(path)
    assert not (tmp_path / "ran").exists()

@pytest.mark.parametrize("keep", (0, 10, 5000, 0.5, 0.99))
def test_torn_file(golden, tmp_path, keep):
    data = (golden / RELEASED).read_bytes()
    torn = tmp_path / "torn.pt"
    torn.write_bytes(data[:keep if isinstance(keep, int) else int(keep*len(data))])
    with pytest.raises(BundleError, match="can't read"): load_released_mbd(torn)

def test_missing_and_misshapen(mbd, tmp_path):
    with pytest.raises(BundleError, match="can't read"): load_released_mbd(tmp_path / "absent.pt")
    config, state = mbd.config(), dict(mbd.state_dict())
    name = "bands.1.unet.conv_codec.weight"
    with pytest.raises(BundleError, match=name): MultiBandDiffusion.from_config(config, state | {name: torch.zeros(3)})
    del state[name]
    with pytest.raises(BundleError, match="missing"): MultiBandDiffusion.from_config(config, state)

def test_transformer_is_refused(golden):
    cfg = omegaconf_to_container(safe_torch_load(golden / RELEASED)[0]["cfg"])
    cfg["diffusion_unet"]["transformer"] = True
    with pytest.raises(BundleError, match="transformer"): convert_band_config(cfg)

def test_options(mbd, want):
    for steps in (0, 1000, [5], [1, 2], [1000, 0]):
        with pytest.raises(OptionError): mbd.generate(want["cond"], 7680, seeded(0), steps=steps)
    with pytest.raises(OptionError, match="latent"): mbd.generate(want["cond"][:, :5], 7680, seeded(0))
    with pytest.raises(OptionError, match="frames"): mbd.generate(want["cond"], 100, seeded(0))
    with pytest.raises(OptionError, match="generators"): mbd.generate(want["cond"], 7680, [seeded(0)])


@pytest.fixture(scope="module")
def plain(golden): return load_released_mbd(golden / RELEASED)

def convolutions(model): return [m for m in model.modules() if isinstance(m, PackableConv)]

def test_every_convolution_is_packed(plain, golden):
    packed = load_released_mbd(golden / RELEASED).pack()
    with torch.no_grad(): assert all(c.packed_weight() is not None for c in convolutions(packed))
    assert all(c.packed_weight() is None for c in convolutions(plain))
    assert all(torch.equal(a, b) for a,b in zip(plain.state_dict().values(), packed.state_dict().values()))
    assert list(plain.state_dict()) == list(packed.state_dict()) == list(packed.state_dict())

def test_a_call_is_the_same_packed(plain, golden, want):
    packed = load_released_mbd(golden / RELEASED).pack()
    args = want["cond"], want["eq_ref"][:, 0], [seeded(1), seeded(2)]
    close(packed(*args, steps=4), plain(*args[:2], [seeded(1), seeded(2)], steps=4), 1e-3)

def test_a_row_alone_or_in_company_packed(golden, want):
    packed, cond = load_released_mbd(golden / RELEASED).pack(), want["cond"]
    both = packed.generate(cond, 5000, [seeded(1), seeded(2)], steps=3)
    close(packed.generate(cond[1:], 5000, [seeded(2)], steps=3), both[1:], 1e-4)

@pytest.mark.parametrize("band", range(4))
def test_bfloat16_products_are_near(plain, golden, want, band):
    narrow = load_released_mbd(golden / RELEASED).pack(torch.bfloat16, min_weights=0).bands[band].unet
    with torch.no_grad(): got, ours = narrow(want["x"], 499, want["cond"]), plain.bands[band].unet(want["x"], 499, want["cond"])
    assert got.dtype == torch.float32 and 0 < (got - ours).std() / ours.std() < .03

def test_changed_weights_are_not_sampled_stale(golden, want):
    model = load_released_mbd(golden / RELEASED).pack()
    unet, other = model.bands[1].unet, load_released_mbd(golden / RELEASED).bands[1].unet
    with torch.no_grad():
        for u in (unet, other):
            for m in convolutions(u): m.weight.mul_(.5)
        close(unet(want["x"], 9, want["cond"]), other(want["x"], 9, want["cond"]), 1e-6)
        unet.load_state_dict({k: v.clone() for k, v in plain_state(golden).items()}, assign=True)
        close(unet(want["x"], 499, want["cond"]), want["unet1_499"])

def plain_state(golden): return load_released_mbd(golden / RELEASED).bands[1].unet.state_dict()

def test_packed_weights_can_be_trained_on(golden, want):
    unet = load_released_mbd(golden / RELEASED).bands[1].unet
    unet.pack(); unet.requires_grad_(True)
    unet(want["x"], 9, want["cond"]).square().mean().backward()
    assert all(c.weight.grad is not None and c.weight.grad.abs().sum() > 0 for c in convolutions(unet))

def test_condition_once_is_condition_each_time(plain, want):
    unet = plain.bands[0].unet
    for length in (7680, 7001, 5000):
        x = want["x"][..., :length]
        with torch.no_grad(): once = unet.condition(want["cond"], unet.columns(length)); assert torch.equal(unet(x, 9, condition=once), unet(x, 9, want["cond"]))

def test_steps_from_the_middle():
    s = NoiseSchedule()
    assert s.steps(20) == s.steps(20, start=999) == [999 - 50*i for i in range(20)] + [0]
    assert s.steps(3, start=299) == [299, 199, 99, 0]
    for start in (0, -1, 1000):
        with pytest.raises(OptionError, match=f"from step {start}"): s.steps(5, start=start)

def spoken(seconds=1., rows=2):
    t = torch.arange(int(24000*seconds))/24000
    return torch.stack([sum(torch.sin(2*torch.pi*(k*(110+30*r)*t + r))/k for k in range(1, 60))*(.02+torch.sin(3*t+r).square()) for r in range(rows)])*.1

@pytest.mark.parametrize("guided", (False, True))
@pytest.mark.parametrize("solver", ("ancestral", "multistep"))
def test_a_perfect_model_from_the_decoding(guided, solver):
    torch.manual_seed(0)
    x = spoken(); decoded = .8*x + .01*torch.randn_like(x)
    mbd = make_mbd(nano_unet_config(4), n_bands=2, guided=guided, schedule=NoiseSchedule(prediction="velocity", clip=0.)).eval()
    fit_band_processors(mbd, x)
    for band, clean in zip(mbd.bands, project_bands(mbd, x, decoded).detach()):
        band.unet.columns, band.unet.condition = (lambda n: n), (lambda *_: 0.)
        def guess(noisy, step, condition=None, clean=clean, bars=band.schedule.alpha_bars.tolist()):
            kept = bars[step]
            return (kept**.5*noisy - clean)/(1-kept)**.5
        band.unet.forward = guess
    latent = torch.zeros(2, 4, 10)
    close(mbd.generate(latent, x.shape[-1], [seeded(1), seeded(2)], 6, decoded=decoded, start=599, solver=solver), x, .1)
    whole = mbd(latent, decoded, [seeded(1), seeded(2)], 6, start=599, solver=solver)
    assert torch.cosine_similarity(whole, x).min() > .98 and (whole.std(-1)/decoded.std(-1) - 1).abs().max() < .1
    if guided:
        with pytest.raises(OptionError, match="give decoded"): mbd.generate(latent, 24000, [seeded(1), seeded(2)])
        with pytest.raises(OptionError, match="give decoded"): project_bands(mbd, x)
        assert MultiBandDiffusion.from_config(json.loads(json.dumps(mbd.config()))).guided
    with pytest.raises(OptionError, match="decoded"): mbd.generate(latent, 24000, [seeded(1), seeded(2)], start=599)
    with pytest.raises(OptionError, match="shape"): mbd.generate(latent, 24000, [seeded(1), seeded(2)], start=599, decoded=x[:, 1:])

def test_multistep_draws_no_noise_on_the_way(plain, want):
    model = plain.bands[1]
    def never(shape): raise AssertionError("asked for noise")
    x = sample_diffusion(model.unet, model.schedule, want["x"], want["cond"], never, 5, solver="multistep")
    assert x.isfinite().all()
    with pytest.raises(OptionError, match="euler"): sample_diffusion(model.unet, model.schedule, want["x"], want["cond"], never, 5, solver="euler")

def test_few_multistep_steps_come_nearer_than_few_ancestral_ones():
    "A Gaussian has an exact answer: the deterministic path from x ends at x times the data's deviation, for many steps."
    schedule, data = NoiseSchedule(prediction="noise", clip=0.), .3
    bars = schedule.alpha_bars.tolist()
    def guess(x, t, _): return (1-bars[t])**.5*x/(bars[t]*data**2 + 1-bars[t]) # the expected noise for data of that deviation
    x = torch.randn(1, 1, 20000, generator=seeded(0))
    exact = sample_diffusion(guess, schedule, x, None, None, 999, solver="multistep")
    errors = [float((sample_diffusion(guess, schedule, x, None, None, n, solver="multistep") - exact).std()/exact.std()) for n in (5, 10, 20)]
    assert errors[0] > errors[1] > errors[2] and errors[1] < .1, errors
    assert abs(float(exact.std())/data - 1) < .05

def test_equal_levels(): # one that follows the level of a signal makes it level
    x = spoken()[:, None]; x = x/x.std()
    level = rms_envelope(x)
    assert level.shape == x.shape and (level > 0).all()
    parts = (x/level).unflatten(-1, (20, -1)).std(-1)
    assert parts.std()/parts.mean() < .2 < x.unflatten(-1, (20, -1)).std(-1).std()
    assert torch.allclose(rms_envelope(x[:1]), level[:1], atol=1e-5)
