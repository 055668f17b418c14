"A tiny model with random weights, which speaks noise as fast as possible; it reads letters or phonemes."

from pathlib import Path

import torch

from metavoice.bundle.load import load_bundle
from metavoice.bundle.write import write_bundle
from metavoice.core.layout import TokenLayout
from metavoice.generate.voice import Voice
from metavoice.models.alignment import CONTEXT_SIZES
from metavoice.models.ddpm import NoiseSchedule
from metavoice.models.gpt import GPT, GPTConfig
from metavoice.models.mbd import fit_band_processors, make_mbd
from metavoice.models.nano_codec import NanoCodec, NanoCodecConfig
from metavoice.models.speaker_encoder import SpeakerEncoder
from metavoice.models.unet import UNetConfig
from metavoice.text.phoneme_tokeniser import PhonemeTokeniser, read_tokeniser_json
from metavoice.text.phonemes import CONSONANTS, PAUSE, VOWELS
from metavoice.train.diffusion import SHALLOW_SAMPLING

CODES = 64  # of a codebook
PHONES = [PAUSE, *VOWELS, *CONSONANTS]
SYMBOLS = f"{VOWELS}{CONSONANTS}ˈˌː ,.?!;:"
RATE, HOP = 8000, 1600  # Hz; samples in a frame: five frames a second


def make_tiny_mbd(latent_dim):
    "Two bands with random weights that start from the codec's decoding."
    unet = UNetConfig(latent_dim=latent_dim, hidden=8, depth=2, growth=2.0, kernel=8, stride=4)
    schedule = NoiseSchedule(prediction="velocity", clip=0.0)
    mbd = make_mbd(unet, sample_rate=RATE, n_bands=2, schedule=schedule, guided=True).eval()
    fit_band_processors(mbd, torch.randn(2, RATE))
    return mbd


def read_letters():
    "Return a tokeniser of letters."
    return read_tokeniser_json(Path(__file__).with_name("letters.json").read_text(encoding="utf-8"))


def write_tiny_bundle(folder, phonemes=False, mbd=False):
    """Write the model; it has nano's defaults, a single take, and a voice of its own.

    It may read phonemes, and have multi-band diffusion beside its codec's decoder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nano = load_bundle("nano", device="cpu")
        tokeniser = PhonemeTokeniser.train([SYMBOLS]) if phonemes else read_letters()
        layout = TokenLayout(CODES, len(tokeniser.mergeable_ranks))
        shape = dict(n_layer=1, n_head=2, n_embd=16, block_size=1024, swiglu_multiple_of=16)
        sizes = dict(vocab_sizes=[layout.first_vocab])
        if phonemes:  # the first stage reads the phone context
            sizes = dict(vocab_sizes=[layout.first_vocab, *CONTEXT_SIZES], target_vocab_sizes=[layout.first_vocab])
        first = GPT(GPTConfig(**shape, **sizes)).eval()
        vocab = [layout.second_vocab, CODES + 1]
        second = GPT(GPTConfig(**shape, vocab_sizes=vocab, target_vocab_sizes=[CODES + 1] * 6, causal=False)).eval()
        with torch.no_grad():  # the first channel is always large, and the end of audio listens to it
            first.transformer.wpe.weight[:, 0] = 5
            for weight in (first.transformer.wtes[0].weight, first.lm_heads[0].weight):  # one matrix if they are tied
                weight[layout.end_of_audio] = 0
                weight[layout.end_of_audio, 0] = 0.7
        sizes = dict(width=16, hidden=16, encoder_blocks=1, decoder_blocks=2, latent_dim=8, codebook_size=CODES)
        hop = HOP // 4 if phonemes else HOP  # a phone takes a frame at least
        sizes |= dict(phones=PHONES) if phonemes else {}
        codec = NanoCodec(NanoCodecConfig(sample_rate=RATE, n_fft=2 * hop, hop=hop, **sizes)).eval()
        if phonemes:
            codec.entry_phones.copy_(torch.arange(CODES) % len(PHONES))
        torch.nn.init.normal_(codec.quantiser.codebooks)
        voice = Voice(torch.nn.functional.normalize(torch.randn(256), dim=-1), "tiny")
        voice_file = voice.save(folder.with_name("tiny.safetensors"))
        left_out = ("mbd", "takes", *["piece_tokens"] * phonemes)
        options = {k: v for k, v in nano.defaults.items() if k not in left_out}
        options |= dict(mbd=SHALLOW_SAMPLING) if mbd else {}
        voices = dict(tiny=(voice_file, "random", *["british"] * phonemes))
        parts = dict(tokeniser=tokeniser, first=first, second=second, codec=codec)
        parts |= dict(mbd=make_tiny_mbd(sizes["latent_dim"])) if mbd else {}
        return write_bundle(
            folder, name="tiny", **parts, speaker_encoder=SpeakerEncoder(), defaults=options,
            voices=voices, minimum_reference=1, dtype="float32",
        )
