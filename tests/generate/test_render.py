"The path from segments to sound: chunks, resumption, errors and memory."
import math
import weakref

import pytest
import torch

import metavoice.generate.render as render_module
from metavoice.core.errors import MetaVoiceError
from metavoice.generate.render import receptive_field, render, vocode_segments
from metavoice.generate.sources import LocalSource

TEXT = "The old man walked to the river. Where is the red book?"


@pytest.fixture(scope="module")
def plain(resolve):
    return resolve(takes=1, denoise=False)


class Fixed:
    "A source whose segments have five frames, except those with the word silence."

    def __init__(self, bundle):
        self.bundle = bundle

    def codes(self, segments, on_tokens=None):
        for segment in segments:
            segment.codes = torch.zeros(2, 5, dtype=torch.long)
            if "silence" in segment.text:
                segment.error = MetaVoiceError(f"nothing was said for {segment.text!r}")
            yield [segment]


def sound(parts):
    return torch.cat([part.samples for part in parts])


def test_the_context_of_the_codec_is_enough(tts):
    codec, hop = tts.bundle.codec, tts.bundle.codec.hop
    before, after = receptive_field(codec)
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(codec.codebook_size, (1, codec.n_codebooks, 100), generator=generator)
    whole, part = codec.decode(codes)[0], codec.decode(codes[..., :60+after])[0]
    assert 0 < after < 30 and before == math.inf  # nano's codec counts periods from the beginning
    assert (part - whole[:len(part)])[:60*hop].abs().max() < 2e-3 * whole.abs().max()


def test_the_receptive_field_of_a_codec_is_found():
    class Echo(torch.nn.Module):
        codebook_size, n_codebooks = 1024, 8

        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(()))

        def decode(self, codes):
            x = torch.nn.functional.pad(codes[:, :1].float() * self.gain, (5, 2))
            return torch.nn.functional.conv1d(x, torch.ones(1, 1, 8))[:, 0].repeat_interleave(4, 1)

    assert receptive_field(Echo()) == (5, 2)


def test_parts_say_where_they_belong(tts, plain):
    segments = tts.segments([TEXT], seed=1)
    whole = list(render(segments, plain, LocalSource(tts.bundle, plain)))
    assert [part.segment for part in whole] == segments and all(part.ends for part in whole)
    assert all(len(part.vocoded) <= len(part.samples) for part in whole)
    chunks = list(render(tts.segments([TEXT], seed=1), plain, LocalSource(tts.bundle, plain), chunk=.4))
    assert len(chunks) > len(whole) and sum(part.ends for part in chunks) == len(whole)
    assert len(sound(chunks)) == len(sound(whole)) and all(part.vocoded is None for part in chunks)


def test_finished_segments_are_not_generated_again(tts, plain):
    class Counting(LocalSource):
        asked = 0

        def codes(self, segments, on_tokens=None):
            Counting.asked += len(segments)
            return super().codes(segments, on_tokens)

    segments = tts.segments([TEXT], seed=1)
    whole = list(render(segments, plain, Counting(tts.bundle, plain)))
    again = render(tts.segments([TEXT], seed=1), plain, Counting(tts.bundle, plain), finished=[whole[0].vocoded])
    assert torch.equal(sound(again), sound(whole)) and Counting.asked == 2 * len(segments) - 1


def test_an_error_ends_its_text_and_no_other(tts, plain):
    texts = ["Hello.\n\nsilence\n\nsilence\n\nMore.", "The cat slept."]
    parts = list(render(tts.segments(texts, seed=1), plain, Fixed(tts.bundle), raise_errors=False))
    assert [part.segment.text for part in parts] == ["Hello.", "silence", "The cat slept."]
    assert [part.error is None for part in parts] == [True, False, True]
    alone = list(render(tts.segments(texts[1:], seed=1), plain, Fixed(tts.bundle)))
    assert torch.equal(parts[-1].samples, alone[0].samples)
    with pytest.raises(MetaVoiceError, match="nothing was said for 'silence'"):
        list(render(tts.segments(texts, seed=1), plain, Fixed(tts.bundle)))


def test_a_closed_render_closes_its_source(tts, plain):
    closed = []

    class Watched(Fixed):
        def codes(self, segments, on_tokens=None):
            try:
                yield from super().codes(segments, on_tokens)
            finally:
                closed.append(True)

    parts = render(tts.segments([TEXT], seed=1), plain, Watched(tts.bundle))
    next(parts)
    assert not closed
    parts.close()
    assert closed


def test_memory_does_not_grow_with_the_text(tts, plain, monkeypatch):
    live, most = weakref.WeakSet(), []

    class Codes(torch.Tensor):
        pass

    def generate_fine_codes(bundle, segments, codes):
        out = [torch.zeros(8, 5, dtype=torch.long).as_subclass(Codes) for _ in segments]
        live.update(out)
        return out

    monkeypatch.setattr("metavoice.generate.codes.generate_fine_codes", generate_fine_codes)
    monkeypatch.setattr(render_module, "vocode", lambda bundle, segment, vocoder, *how: torch.ones(100))
    for _ in vocode_segments(tts.segments(["The dog slept. " * 300], seed=1), plain, Fixed(tts.bundle)):
        most.append(len(live))
    assert len(most) > 90 and max(most) <= 2
