"Nano and one of its voices, loaded once for all tests of this folder."
import pytest


@pytest.fixture(scope="session")
def tts():
    from metavoice.generate.tts import TTS

    return TTS.from_pretrained(device="cpu")


@pytest.fixture(scope="session")
def own(tts):
    "The name of nano's first voice."
    return next(iter(tts.bundle.voices))
