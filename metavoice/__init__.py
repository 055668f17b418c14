"Text to speech with MetaVoice-1B: clone a voice, finetune it, read text of any length."
__version__ = "0.1.0"

import os
from importlib import import_module

os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')  # onnxruntime reads it when it is imported

_MODULES = dict(TTS='generate.tts', Audio='audio.sound', Voice='bundle.voice')
__all__ = list(_MODULES)


def __getattr__(name):
    "Import a public name when it is first used, so that `import metavoice` stays light."
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f'{__name__}.{_MODULES[name]}'), name)
    return value


def __dir__():
    return sorted({*globals(), *__all__})
