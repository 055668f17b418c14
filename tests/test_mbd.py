"Multi-band diffusion against audiocraft 1.3.0's outputs, and the safety of its reader."
import json, pickle, sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from metavoice.core import BundleError, OptionError
from metavoice.mbd import (MultiBandDiffusion, NoiseSchedule, UNet, UNetConfig, band_config, denoise, draw_noise, equalise,
    plain_config, read_inertly, read_released_mbd, split_bands)

RELEASED = "mbd_comp_8.pt"


@pytest.fixture(scope="module")
def mbd(golden): return read_released_mbd(golden / RELEASED)

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
        return band.restore(denoise(band.unet, band.schedule, x, latent, lambda shape: draw_noise(shape, generator), steps))


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
    assert torch.equal(*one)

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
    with pytest.raises(BundleError, match="wants to run"): read_released_mbd(path)
    assert not ran.exists()

def test_inert_names_leave_nothing_behind(golden):
    before = torch.serialization.get_safe_globals()
    content = read_inertly(golden / RELEASED)
    assert type(content[0]["cfg"]).__name__ == "Inert" and "omegaconf" not in sys.modules
    assert torch.serialization.get_safe_globals() == before

def test_plain_pickle_is_refused(tmp_path):
    path = tmp_path / "old.pt"
    path.write_bytes(pickle.dumps(Wicked(tmp_path / "ran")))
    with pytest.raises(BundleError, match="can't read"): read_released_mbd(path)
    assert not (tmp_path / "ran").exists()

@pytest.mark.parametrize("keep", (0, 10, 5000, 0.5, 0.99))
def test_torn_file(golden, tmp_path, keep):
    data = (golden / RELEASED).read_bytes()
    torn = tmp_path / "torn.pt"
    torn.write_bytes(data[:keep if isinstance(keep, int) else int(keep*len(data))])
    with pytest.raises(BundleError, match="can't read"): read_released_mbd(torn)

def test_missing_and_misshapen(mbd, tmp_path):
    with pytest.raises(BundleError, match="can't read"): read_released_mbd(tmp_path / "absent.pt")
    config, state = mbd.config(), dict(mbd.state_dict())
    name = "bands.1.unet.conv_codec.weight"
    with pytest.raises(BundleError, match=name): MultiBandDiffusion.from_config(config, state | {name: torch.zeros(3)})
    del state[name]
    with pytest.raises(BundleError, match="missing"): MultiBandDiffusion.from_config(config, state)

def test_transformer_is_refused(golden):
    cfg = plain_config(read_inertly(golden / RELEASED)[0]["cfg"])
    cfg["diffusion_unet"]["transformer"] = True
    with pytest.raises(BundleError, match="transformer"): band_config(cfg)

def test_options(mbd, want):
    for steps in (0, 1000, [5], [1, 2], [1000, 0]):
        with pytest.raises(OptionError): mbd.generate(want["cond"], 7680, seeded(0), steps=steps)
    with pytest.raises(OptionError, match="latent"): mbd.generate(want["cond"][:, :5], 7680, seeded(0))
    with pytest.raises(OptionError, match="frames"): mbd.generate(want["cond"], 100, seeded(0))
    with pytest.raises(OptionError, match="generators"): mbd.generate(want["cond"], 7680, [seeded(0)])
