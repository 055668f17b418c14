"Speech of a model that reads phonemes says the phones of its text, all of them and in order."
from dataclasses import replace
from itertools import groupby
from types import SimpleNamespace

import pytest
import torch
from tiny import write_tiny_bundle

from metavoice.core.errors import OptionError
from metavoice.generate.codes import Generation, frame_limits, make_phone_track, scored_text
from metavoice.generate.decoding import decode_steps
from metavoice.generate.options import SpeechOptions
from metavoice.generate.tts import TTS
from metavoice.models.codec import deinterleave
from metavoice.models.decode_step import DecodeStep
from metavoice.models.step_graph import GraphDecodeStep
from metavoice.text.phonemes import PAUSE
from metavoice.train.batches import TokenizedUtterance, collate_first_stage
from metavoice.train.tokens import add_phone_context

TEXTS = ["The old man walked to the river.", "Yes.", "Bad day, dad did!", "I can't read what I read yesterday."]


@pytest.fixture(scope="module")
def tts(tmp_path_factory):
    pytest.importorskip("hibari")
    return TTS.from_pretrained(write_tiny_bundle(tmp_path_factory.mktemp("phonemes") / "tiny", phonemes=True), "cpu")


def said(bundle, codes):
    "The phones of the first codebook, without pauses and repetitions."
    names = [bundle.codec.config.phones[bundle.codec.entry_phones[code]] for code in codes[0].tolist()]
    return [name for name, _ in groupby(name for name in names if name != PAUSE)]


def wanted(bundle, ids):
    "The phones of a text, without pauses; two equal neighbours are one."
    return [name for name, _ in groupby(s.name for s in bundle.tokeniser.states(ids) if s.name != PAUSE)]


@pytest.mark.parametrize("options", [{}, dict(guidance=3.0), dict(guidance=1.0, prompt_guidance=2.0, top_p=0.5),
                                     dict(temperature=0)], ids=str)  # fmt: skip
def test_every_phone_is_said_in_order(tts, options):
    found = tts.codes(TEXTS, seed=3, **options)
    segments = tts.segments(TEXTS, None, 3)
    for segment, (codes,) in zip(segments, found, strict=True):
        phones, expected = said(tts.bundle, codes), wanted(tts.bundle, segment.ids)
        most = frame_limits(tts.bundle, segment.text, len(segment.ids))[1]
        cut = codes.shape[1] == most  # random weights stay too long
        assert phones == expected or (cut and phones == expected[: len(phones)])


def test_a_row_doesnt_depend_on_the_batch(tts):
    together = tts.codes(TEXTS, seed=5)
    for text, (codes,) in zip(TEXTS, together):
        assert torch.equal(tts.codes([text], seed=5)[0][0], codes)


def draw(tts, request, constrain):
    "The tokens of a request."
    sampling = SpeechOptions(constrain=constrain).resolve(tts.bundle).sampling()
    steps = decode_steps(tts.bundle.first, [request], layout=tts.bundle.layout, **sampling)
    return [token for ((_, token, _),) in steps]


def test_without_the_constraint_speech_may_leave_the_track(tts):
    segment = tts.segments(TEXTS[:1], None, 1)[0]
    codes = draw(tts, Generation(tts.bundle, segment).request(), False)[:40]
    assert said(tts.bundle, torch.tensor([[code % tts.bundle.layout.codebook_size for code in codes]])) != wanted(
        tts.bundle, segment.ids)
    codes = draw(tts, Generation(tts.bundle, segment).request(), True)[::2]
    phones = said(tts.bundle, torch.tensor([[code for code in codes if code < tts.bundle.layout.codebook_size]]))
    assert phones == wanted(tts.bundle, segment.ids)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_the_context_is_that_of_training(tts, monkeypatch, engine):
    "The model reads the same streams in decoding as it does in training, for the codes that are drawn."
    bundle, read = tts.bundle, []
    segment = tts.segments(["Bad day, dad did!"], None, 1)[0]
    kind = GraphDecodeStep if engine == "onnx" else DecodeStep
    monkeypatch.setattr(bundle.first, "engine", engine)

    def spy(step, ids, context=None, call=kind.__call__):
        read.append(torch.cat([ids[:1, None], context[:1]], 1)[:, :, None])  # the first branch
        return call(step, ids, context)

    def spy_on_prompt(step, ids, *inputs, call=kind.prefill):
        read.append(ids[:1])
        return call(step, ids, *inputs)

    monkeypatch.setattr(kind, "__call__", spy)
    monkeypatch.setattr(kind, "prefill", spy_on_prompt)
    tokens = torch.tensor([t for t in draw(tts, Generation(bundle, segment).request(), True)])
    tokens = tokens[tokens < bundle.layout.end_of_audio]
    codes = deinterleave(tokens, bundle.layout)
    u = TokenizedUtterance(segment.ids, codes.short(), [], torch.empty(0), "", 0)
    (u,), streams = add_phone_context([u], bundle.tokeniser, bundle.codec), bundle.first.config.streams
    ids, _, _ = collate_first_stage([u], bundle.layout, None, corrupt=0, drop_text=0, streams=streams)
    n = len(segment.ids) + codes.numel()
    assert torch.equal(torch.cat(read, 2)[:, :, :n], ids[:, :, :n])


def test_departures_are_measured(tts):
    segment = tts.segments(TEXTS[:1], None, 1)[0]
    generation = Generation(tts.bundle, segment)
    request = generation.request()
    request.track.measure = True
    sampling = SpeechOptions().resolve(tts.bundle).sampling()
    for _ in decode_steps(tts.bundle.first, [request], layout=tts.bundle.layout, **sampling):
        pass
    assert request.track is generation.track and request.track.steps > 10
    assert 0.3 < request.track.departures / request.track.steps < 1  # the weights are random


def test_a_voice_has_an_accent(tts):
    assert tts.voice("tiny").accent == "british" and tts.bundle.voice_accents == dict(tiny="british")
    tokeniser = tts.bundle.tokeniser
    ids = [tts.segments(["The dance."], None, 1, SpeechOptions(accent=accent))[0].ids
           for accent in (None, "british", "american")]  # fmt: skip
    assert ids[0] == ids[1] == tokeniser.encode("The dance.", "british") != ids[2] == tokeniser.encode("The dance.")
    american = replace(tts.voice("tiny"), accent="american")
    assert tts.segments(["The dance."], american, 1)[0].ids == ids[2]


def test_an_accent_is_kept_by_save(tts, tmp_path):
    again = TTS.from_pretrained(tts.bundle.save(tmp_path / "copy", dtype="float32"), "cpu")
    assert again.voice("tiny").accent == "british" and again.bundle.tokeniser == tts.bundle.tokeniser
    assert torch.equal(again.bundle.codec.entry_phones, tts.bundle.codec.entry_phones)
    assert again.bundle.codec.config.phones == tts.bundle.codec.config.phones


def test_letters_have_no_accent(tmp_path):
    letters = TTS.from_pretrained(write_tiny_bundle(tmp_path / "tiny"), device="cpu")
    assert make_phone_track(letters.bundle, letters.segments(["Yes."], None, 1)[0].ids) is None
    with pytest.raises(OptionError, match="the model reads letters"):
        letters.segments(["Yes."], None, 1, SpeechOptions(accent="british"))


def test_long_texts_are_split_by_phonemes(tts):
    text = "The old man walked to the river, and the little dog ran after him through the wood. " * 12
    tts.bundle.defaults["piece_tokens"] = 120
    segments = tts.segments([text], None, 1)
    del tts.bundle.defaults["piece_tokens"]
    assert len(segments) >= 12 and max(len(segment.ids) for segment in segments) <= 120
    assert " ".join(segment.text for segment in segments) == text.strip()


def test_synthesis_and_streams(tts):
    whole = tts.synthesise(TEXTS[1], seed=1, denoise=False)
    parts = [chunk.samples for chunk in tts.stream(TEXTS[1], seed=1, denoise=False)]
    assert len(whole.samples) == sum(map(len, parts)) > 0


@pytest.mark.parametrize("reads, said", [("letters", "Yes."), ("phonemes", "jˈɛs.")])
def test_takes_are_scored_by_what_the_scorer_reads(tts, reads, said):
    segment, = tts.segments(["Yes."])
    listener = SimpleNamespace(config=SimpleNamespace(reads=reads))
    bundle = SimpleNamespace(listener=listener, tokeniser=tts.bundle.tokeniser)
    assert scored_text(bundle, segment) == said
