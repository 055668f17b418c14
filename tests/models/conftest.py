"Fixtures of the tests of `metavoice.models`."
import pytest
import torch


def attend_in_float64(q, k, v, lengths, causal):
    "Attention in float64, with PyTorch's softmax over the valid keys of each row and query."
    out = torch.zeros_like(q, dtype=torch.float64)
    for b in range(len(q)):
        n = k.shape[2] if lengths is None else int(lengths[b])
        for t in range(q.shape[2]):
            end = n - q.shape[2] + t + 1 if causal else n
            if end <= 0:
                continue
            scores = q[b, :, t:t+1].double() @ k[b, :, :end].double().transpose(-1, -2) / q.shape[-1]**.5
            out[b, :, t:t+1] = scores.softmax(-1) @ v[b, :, :end].double()
    return out.float()


@pytest.fixture(scope="session")
def reference_attention():
    return attend_in_float64


@pytest.fixture(scope="session")
def load_golden_mbd(golden):
    "A function that reads the golden multi-band diffusion anew, for tests that change it."
    from metavoice.bundle.released import load_released_mbd

    return lambda: load_released_mbd(golden / "mbd_comp_8.pt")


@pytest.fixture(scope="session")
def plain_mbd(load_golden_mbd):
    "The golden multi-band diffusion, not packed; not to be changed."
    return load_golden_mbd()


@pytest.fixture(scope="session")
def packed_mbd(load_golden_mbd):
    "The golden multi-band diffusion with packed convolutions; not to be changed."
    return load_golden_mbd().pack()


@pytest.fixture(scope="session", params=("plain", "packed"))
def mbd(request):
    "The golden multi-band diffusion, plain and packed; not to be changed."
    return request.getfixturevalue(f"{request.param}_mbd")


@pytest.fixture(scope="session", params=range(4))
def golden_band(mbd, request):
    "Each band of the golden model and its number; a subset has fewer bands."
    if request.param >= len(mbd.bands):
        pytest.skip(f"this golden model has {len(mbd.bands)} bands")
    return mbd.bands[request.param], request.param


@pytest.fixture(scope="session")
def mbd_tensor(mbd_expected):
    "A function that returns a golden array of the diffusion as a tensor; an absent one skips the test."
    return lambda name: torch.from_numpy(mbd_expected[name])


@pytest.fixture(scope="session")
def noisy_tone():
    "1.2 s of a harmonic tone in noise at 48 kHz; not to be changed."
    t = torch.arange(57_600) / 48000
    tone = sum(torch.sin(2 * torch.pi * 140 * k * t) / k for k in range(1, 20)) * (1 + torch.sin(2 * torch.pi * 4 * t))
    return 0.1 * tone + 0.05 * torch.randn(len(t), generator=torch.Generator().manual_seed(0))


def find_delay(late, early):
    "Return by how many samples a signal (time,) is behind another: the maximum of the cross-correlation."
    size = 2 * max(len(late), len(early))
    correlation = torch.fft.irfft(torch.fft.rfft(late, size) * torch.fft.rfft(early, size).conj(), size)
    at = int(correlation.argmax())
    return at if at < size // 2 else at - size


@pytest.fixture(scope="session")
def delay_of():
    return find_delay
