"Text to speech with MetaVoice-1B: clone a voice, finetune it, read text of any length."
__version__ = "0.1.0"
