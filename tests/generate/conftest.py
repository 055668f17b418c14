"Fixtures and helpers of the tests of speech generation."
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import metavoice
from metavoice.audio.features import log_mel
from metavoice.audio.sound import Audio, load_audio
from metavoice.core.layout import TokenLayout
from metavoice.generate.options import SpeechOptions
from metavoice.generate.tts import TTS
from metavoice.models.gpt import GPT, GPTConfig

NANO = Path(metavoice.__file__).parent / "nano"
LAYOUT = TokenLayout(codebook_size=8, text_ranks=4)  # 0–7, 8–15, end of audio 16, text 17–20, end of text 21


@pytest.fixture(scope="session")
def tts():
    return TTS.from_pretrained(device="cpu")


@pytest.fixture(scope="session")
def resolve(tts):
    "A function from options to those that nano resolves them to."
    return lambda **options: SpeechOptions(**options).resolve(tts.bundle)


@pytest.fixture(scope="session")
def speaking():
    "Five seconds of one of nano's voices."
    audio = load_audio(next((NANO / "voices").iterdir()))
    return Audio(audio.samples[:5*audio.sample_rate], audio.sample_rate)


@pytest.fixture(scope="session")
def spectra_correlate():
    "A function that returns the correlation of two log-mel spectrograms."
    return lambda a, b, rate: torch.corrcoef(torch.stack([log_mel(x, rate).flatten() for x in (a, b)]))[0, 1]


@pytest.fixture(scope="module")
def model():
    "A tiny first stage with random weights and clear preferences."
    config = GPTConfig(n_layer=2, n_head=4, n_embd=64, block_size=96, vocab_sizes=[LAYOUT.first_vocab],
                       swiglu_multiple_of=32)
    model = GPT(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, .15, generator=generator)
    return model


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(1)
    lengths = (3, 11, 6, 1, 8)
    return [torch.cat([torch.randint(17, 21, (n,), generator=generator), torch.tensor([21])]) for n in lengths]


@pytest.fixture(scope="module")
def speakers():
    return F.normalize(torch.randn(5, 256, generator=torch.Generator().manual_seed(2)), dim=-1)
