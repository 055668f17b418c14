"Training the codec's decoder, with and without discriminators."
import json

import pytest
import torch

from metavoice.models.nano_codec import NanoCodec, NanoCodecConfig
from metavoice.models.part_graphs import use_onnxruntime
from metavoice.train.decoder import Critics, MelDiscriminator, balanced_gradient, decoder_parts, train_decoder
from metavoice.train.loop import Trainer
from metavoice.train.optim import TrainingConfig

ENCODER = ("mel_in", "encoder", "fold", "to_latent", "quantiser", "phone_head", "entry_phones")


def new_codec():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = dict(width=16, hidden=32, encoder_blocks=2, decoder_blocks=2, latent_dim=8, codebook_size=32)
        codec = NanoCodec(NanoCodecConfig(**sizes, finest_blocks=1, phones=["pau", "a"]))
        codec.quantiser.codebooks.normal_()
    return codec


@pytest.fixture(scope="module")
def data(demo_corpus):
    sounds, codec = [demo_corpus.audio(i) for i in range(2)], new_codec()
    with torch.inference_mode():
        return sounds, [codec.encode(x[None])[0] for x in sounds]


def train(folder, data, steps, codec=None, **options):
    sounds, codes = data
    options = dict(batch_size=2, seconds=0.3, compile=False, log_every=1) | options
    config = TrainingConfig(steps=steps, learning_rate=2e-3, precision="float32")
    return train_decoder(codec or new_codec(), sounds.__getitem__, codes, folder, config, **options)


@pytest.mark.parametrize("adversarial, logged", [
    (0.0, {"distance", "latent", "pitch"}),
    (0.7, {"distance", "latent", "pitch", "judged", "features", "critics"}),
])
def test_only_the_decoder_learns(data, tmp_path, adversarial, logged):
    before, codec = new_codec().state_dict(), train(tmp_path, data, 4, adversarial=adversarial)
    changed = {name for name, t in codec.state_dict().items() if not torch.equal(t, before[name])}
    assert changed and not any(name.startswith(ENCODER) for name in changed)
    assert changed == {name for name in before if not name.startswith(ENCODER)}
    assert all(p.requires_grad for part in decoder_parts(codec) for p in part.parameters())
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert logged <= set(last) and ("judged" in last) == bool(adversarial)
    parts = last["distance"] + last["latent"] + last["pitch"]
    assert last["loss"] == pytest.approx(parts, abs=1e-3)


def test_onnxruntime_does_not_keep_the_old_weights(data, tmp_path):
    codec = use_onnxruntime(new_codec())
    assert codec.session is not None
    trained, before = train(tmp_path, data, 2, codec), new_codec()
    latent = before.latent(data[1][0][None])
    with torch.inference_mode():
        assert not torch.equal(trained.predict_filters(latent)[1], before.predict_filters(latent)[1])


def test_a_stopped_training_ends_as_one_that_ran_through(data, tmp_path):
    def stop(line):
        if line["step"] == 3:
            raise KeyboardInterrupt

    whole = train(tmp_path / "whole", data, 5, adversarial=0.7)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "two", data, 5, adversarial=0.7, on_log=stop)
    resumed = train(tmp_path / "two", data, 5, adversarial=0.7)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_discriminators_learn_to_tell_noise_from_a_tone(tmp_path):
    torch.manual_seed(0)
    trainer = Trainer(torch.nn.Linear(1, 1), tmp_path, TrainingConfig(steps=30, precision="float32"))
    critics, tone = Critics(24000, "cpu", 2e-3), torch.sin(torch.arange(9600) / 9).expand(2, -1)
    found = []
    for _ in range(15):
        noise = torch.randn(2, 9600).requires_grad_()
        loss, parts = critics(noise, tone, trainer)
        found.append(parts["critics"].item())
    assert found[-1] < 0.5 * found[0] and parts["judged"] > 0.5
    assert torch.autograd.grad(loss, noise)[0].abs().sum() > 0
    assert all(p.grad is not None for p in critics.critics.parameters())


def test_gradients_are_balanced():
    x = torch.ones(2, 8, requires_grad=True)
    gradient = balanced_gradient(x, 3 * x.sum(), 1e-3 * (x * torch.arange(8)).sum(), 0.5)
    added = gradient - 3
    assert added.norm().item() == pytest.approx(0.5 * 3 * 4, rel=1e-4)
    assert (added[:, 1:] / torch.arange(1, 8)).std() < 1e-5


def test_patches():
    critic = MelDiscriminator(400, 80, 64)
    judged, features = critic(critic.spectrogram(torch.randn(2, 4800), 24000))
    assert judged.shape[:2] == (2, 1) and judged.shape[2] == features[-1].shape[2] and len(features) == 4
