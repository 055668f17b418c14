"""Does nano speak? A recogniser and DNSMOS listen to sentences of its domain that it was never trained on.

`python tests/test_nano.py 40` prints the table of the README: words that are heard wrong, DNSMOS and speed, by vocoder.
"""
import re, sys

import jiwer
import numpy as np
import pocketsphinx
import pytest

from metavoice.pretrain import sentences
from metavoice.tts import TTS

# 15_pretrain keeps these out of training. Nano's sampling defaults were chosen by listening to the first 20 of them,
# so what is reported comes from the other end.
HELD_OUT = sentences(400, seed=2026)[::-1]


def plain(text): return re.sub(r"[^a-z' ]", "", text.lower())

def recognise(audio):
    "What pocketsphinx hears, with its own English model of open vocabulary."
    samples = audio.resample(16_000).samples.numpy()
    samples = np.pad(.1*samples/max(np.sqrt(np.mean(samples**2)), 1e-6), 3200).clip(-1, 1)
    decoder = pocketsphinx.Decoder(samprate=16_000, loglevel="FATAL")
    decoder.start_utt(); decoder.process_raw((samples*32767).astype(np.int16).tobytes(), full_utt=True); decoder.end_utt()
    heard = decoder.hyp()
    return re.sub(r"\(\d+\)", "", heard.hypstr) if heard else ""

def quality(audio):
    "DNSMOS, overall, 1 to 5."
    from speechmos import dnsmos
    return float(dnsmos.run(audio.resample(16_000).samples.clamp(-1, 1).numpy(), sr=16_000)["ovrl_mos"])


@pytest.fixture(scope="module")
def tts(): return TTS.from_pretrained("nano", device="cpu")

def test_half_of_the_words_are_heard(tts):
    texts = HELD_OUT[:10]
    audios = tts.synthesise(texts, seed=0, denoise=False)
    for text, audio in zip(texts, audios): assert .15*len(text.split()) < audio.duration < .8*len(text.split())+1, text
    heard = [recognise(a) for a in audios]
    hits = jiwer.process_words([plain(t) for t in texts], heard).hits
    words = sum(len(plain(t).split()) for t in texts)
    assert hits >= .5*words, list(zip(texts, heard))

def test_the_first_sentence_is_speech(tts):
    audio = tts.synthesise("The first sentence that metavoice ever spoke.", seed=0)
    assert 1.5 < audio.duration < 6
    assert quality(audio) >= 2.


def measure(n, seed=0):
    tts = TTS.from_pretrained("nano", device="cpu")
    texts = HELD_OUT[:n]
    for vocoder in ("codec", "mbd"):
        if vocoder not in ("codec", *tts.bundle.parts): continue
        for denoise in (False, True):
            timings = {}
            audios = [tts.synthesise(t, seed=seed, vocoder=vocoder, denoise=denoise, timings=timings) for t in texts]
            tokens, seconds = timings.pop("tokens"), sum(a.duration for a in audios)
            wrong = jiwer.wer([plain(t) for t in texts], [recognise(a) for a in audios])
            scores = [quality(a) for a in audios]
            print(f"{vocoder:6}{'denoised' if denoise else '':10} words wrong {wrong:.3f}, DNSMOS {np.mean(scores):.2f} ± {np.std(scores):.2f}, "
                  f"{sum(timings.values())/seconds:.2f} s a second ({', '.join(f'{k} {v/seconds:.2f}' for k,v in timings.items())}), "
                  f"{tokens/timings['first stage']:.0f} tokens/s", flush=True)

if __name__ == "__main__": measure(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
