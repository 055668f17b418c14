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
