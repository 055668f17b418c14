"Functions and fixtures of the tests of audio."

import numpy as np
import pytest

RATE = 16000


@pytest.fixture(scope="session")
def tone():
    "A function that returns a sine as (time,) float32."

    def make_tone(seconds=1.0, rate=RATE, hz=300.0):
        return 0.4 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate).astype('float32')

    return make_tone
