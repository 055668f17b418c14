"DeepFilterNet: its delay, batches of streams, and files of weights that can't be read."
import pytest
import torch

from metavoice.audio.sound import Audio
from metavoice.core.errors import BundleError
from metavoice.models import deepfilter
from metavoice.models.deepfilter import DF_DELAY, DfState, erb_band_widths, load_deepfilternet
from metavoice.models.denoiser import Denoiser, enhance


def test_delay_is_1440_samples(noisy_tone, delay_of):
    whole = noisy_tone[: len(noisy_tone) // 480 * 480]
    assert delay_of(load_deepfilternet()(whole.view(-1, 480), DfState()).flatten(), whole) == 1440 == DF_DELAY


def test_bands_cover_the_spectrum():
    widths = erb_band_widths()
    assert len(widths) == 32 and sum(widths) == 481 and min(widths) == 2


def test_streams_of_a_batch_do_not_influence_each_other(noisy_tone):
    network, frames = load_deepfilternet(), noisy_tone[:19_200].view(40, 480)
    a, b, c = (DfState() for _ in range(3))
    keeps = [0.0, 0.0, 0.1]
    first = network.forward_batch([(frames[:25], a), (frames[:0], b), (frames[9:], c)], keeps)
    second = network.forward_batch([(frames[25:], a), (frames, b), (frames[:0], c)], keeps)
    expected = [network(frames, DfState()), network(frames, DfState()), network(frames[9:], DfState(), 0.1)]
    for parts, wanted in zip(zip(first, second), expected):
        torch.testing.assert_close(torch.cat(parts), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("content, message", [(None, "No such file"), (b"not at all", "header")])
def test_missing_and_broken_weights(monkeypatch, tmp_path, content, message):
    path = tmp_path / "weights.safetensors"
    monkeypatch.setattr(deepfilter, "DF_WEIGHTS_PATH", path)
    if content:
        path.write_bytes(content)
    load_deepfilternet.cache_clear()
    for use in (load_deepfilternet, Denoiser, lambda: enhance(Audio(torch.zeros(480), 48000))):
        with pytest.raises(BundleError, match=f"weights can't be read.*{message}"):
            use()
