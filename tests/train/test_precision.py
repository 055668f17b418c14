"The number formats of training: float16 with a scaled loss, for GPUs without bfloat16."
import pytest
import torch
from torch import nn

import metavoice.train.optim as optim
from metavoice.core.errors import MetaVoiceError, OptionError
from metavoice.train.loop import Trainer
from metavoice.train.optim import TrainingConfig, pick_precision


def line_loss(trainer):
    "The error of a line that is to be learnt."
    x = torch.rand(16, 1, generator=trainer.rng)
    with trainer.autocast():
        y = trainer.model(x)
    return dict(loss=(y.float() - 2 * x - 1).square().mean())


def make_trainer(folder, **settings):
    torch.manual_seed(0)
    config = dict(steps=150, learning_rate=0.1, warmup=0.05, precision="float16") | settings
    return Trainer(nn.Linear(1, 1), folder, TrainingConfig(**config))


@pytest.mark.parametrize("native, device, expected", [
    (True, "cuda", "bfloat16"), (False, "cuda", "float16"), (False, "cpu", "float32"), (True, "cpu", "bfloat16"),
    (False, "mps", "float32"),
])
def test_the_default_suits_the_device(monkeypatch, native, device, expected):
    "A GPU before Ampere has no bfloat16."
    monkeypatch.setattr(optim, "has_native_bfloat16", lambda device: native)
    assert pick_precision(torch.device(device)) == expected


def test_unknown_precision():
    with pytest.raises(OptionError, match="unknown precision 'half'; use float32, bfloat16, float16 or None"):
        TrainingConfig(precision="half")


def test_float16_learns(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.run(line_loss)
    assert trainer.model.weight.dtype == torch.float32
    assert trainer.model.weight.item() == pytest.approx(2, abs=0.1)
    assert trainer.model.bias.item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("muon", (False, True))
def test_a_step_with_an_infinite_gradient_changes_nothing(tmp_path, muon):
    "The factor of the loss is halved, and the next steps go on."
    trainer, seen = make_trainer(tmp_path, steps=6, muon=muon), []

    def loss(trainer):
        seen.append((trainer.scaler.get_scale(), trainer.model.weight.item()))
        found = line_loss(trainer)
        return dict(loss=found["loss"] * (float("inf") if trainer.step == 2 else 0.01))

    trainer.run(loss, log_every=6)
    scales, weights = zip(*seen)
    assert scales[3] == scales[2] / 2 and scales[:3] == (65536.0,) * 3
    assert weights[3] == weights[2] != weights[1] and weights[4] != weights[3]


def test_the_factor_is_resumed(tmp_path):
    trainer = make_trainer(tmp_path, steps=3)
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | dict(scale=512.0))
    trainer.save()
    assert make_trainer(tmp_path, steps=3).scaler.get_scale() == 512.0
    make_trainer(tmp_path, steps=3, precision="float32")  # a run may go on in another precision


def test_gradients_that_stay_infinite_are_an_error(tmp_path):
    trainer = make_trainer(tmp_path, steps=40)
    with pytest.raises(MetaVoiceError, match="its gradient .* a learning rate below"):
        trainer.run(lambda t: dict(loss=line_loss(t)["loss"] * float("nan")))
    assert trainer.step == 16  # 65536 halved to 1


def test_float32_and_bfloat16_are_not_scaled(tmp_path):
    for precision in ("float32", "bfloat16"):
        trainer = make_trainer(tmp_path / precision, steps=2, precision=precision)
        assert not trainer.scaler.is_enabled()
        trainer.run(line_loss)
        assert trainer.autocast().fast_dtype == torch.bfloat16
