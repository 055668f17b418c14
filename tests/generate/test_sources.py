"The source that decodes in this process: order, attempts, look-ahead and streams."
import logging
import sys

import pytest
import torch

import metavoice.generate.sources as sources
from metavoice.core.errors import MetaVoiceError
from metavoice.generate.codes import frame_limits
from metavoice.generate.sources import LocalSource, generate_codes

FIVE = ["The dog slept.", "Where is the red book?", "The old man walked to the river.",
        "The cat and the dog slept quietly.",
        "The woman was tired, so she sat down. The old man walked to the river, and the little dog ran after him."]


class Scripted:
    """A stand-in for `decode_steps` that follows a plan for each prompt: for each attempt (frames, finished).

    One request at a time; it keeps the seeds of the attempts."""

    def __init__(self, tts, segments, plans):
        layout = tts.bundle.layout
        self.which = {tuple(i + layout.text_offset for i in s.ids): n for n, s in enumerate(segments)}
        self.plans, self.seeds = plans, [[] for _ in plans]

    def __call__(self, model, requests, *, layout, max_rows, **options):
        for index, request in enumerate(requests):
            assert request is not None, "no request is at work, so there is nothing to wait for"
            n = self.which[tuple(request.prompt.tolist())]
            frames, finished = self.plans[n][len(self.seeds[n])]
            self.seeds[n].append(request.seed)
            tokens = ([5, 1029] * frames + [2048] * finished)[:request.max_new_tokens]
            for at, token in enumerate(tokens, 1):
                yield [(index, token, "ended" if at == len(tokens) else None)]
            if not tokens:
                yield [(index, None, "ended")]


@pytest.fixture
def script(monkeypatch, tts, resolve):
    "A function that runs plans, one for each of some texts; returns the segments, the source and the seeds used."

    def run(*plans, batch_size=16):
        segments = tts.segments(FIVE[:len(plans)], seed=list(range(len(plans))))
        scripted = Scripted(tts, segments, plans)
        monkeypatch.setattr(sources, "decode_steps", scripted)
        return segments, LocalSource(tts.bundle, resolve(takes=1), batch_size), scripted.seeds

    return run


def test_only_what_failed_is_tried_again(script):
    segments, source, seeds = script([(20, True)], [(0, True), (27, True)], [(44, True)])
    assert [take.codes.shape[1] for take, in source.codes(segments)] == [20, 27, 44]
    assert [len(s) for s in seeds] == [1, 2, 1] and len({*seeds[0], *seeds[1]}) == 3


def test_a_segment_without_sound_is_an_error_and_the_others_are_spoken(script):
    plans = [(20, True)], [(0, True)] * 5, [(44, True)]
    segments, source, _ = script(*plans)
    takes = [take for take, in source.codes(segments)]
    assert "nothing was said for 'Where is the red book?' in 5 attempts" in str(takes[1].error)
    assert [take.codes.shape[1] for take in takes[::2]] == [20, 44]
    segments, source, _ = script(*plans)
    made = generate_codes(segments, source, raise_errors=False)
    assert [segment.error is None for segment in made] == [True, False, True]
    segments, source, _ = script(*plans)
    with pytest.raises(MetaVoiceError, match="nothing was said"):
        list(generate_codes(segments, source))


def test_endless_speech_is_cut(script, tts, caplog):
    with caplog.at_level(logging.WARNING):
        segments, source, seeds = script([(5000, False)] * 2, [(49, True)], [(59, False), (58, False), (57, False)])
        frames = [take.codes.shape[1] for take, in source.codes(segments)]
    most = frame_limits(tts.bundle, segments[0].text, len(segments[0].ids))[1]
    assert frames == [most, 49, 57] and [len(s) for s in seeds] == [2, 1, 3]
    assert "'The dog slept.' came to no end in 2 attempts" in caplog.text
    assert "was cut after 57 frames" in caplog.text


def test_a_slow_segment_holds_the_others_back(monkeypatch, tts, resolve):
    begun, segments = [], tts.segments(["The dog slept. " * 60], seed=1)

    def decode_steps(model, requests, *, layout, max_rows, **options):
        def end(index):
            return [[(index, token, None)] for token in [5, 1029] * 30] + [[(index, 2048, "ended")]]

        next(requests)
        for index, request in enumerate(requests, 1):
            if request is None:
                break
            begun.append(index)
            yield from end(index)
        yield from end(0)

    monkeypatch.setattr(sources, "decode_steps", decode_steps)
    decoded = LocalSource(tts.bundle, resolve(takes=1), 2).codes(segments)
    assert len([next(decoded) for _ in range(4)]) == 4
    assert len(segments) > 5 and begun == [1, 2, 3]


def test_a_stream_tries_again_where_nothing_was_said(script):
    segments, source, seeds = script([(0, True), (9, True), (60, True)])
    parts = [(codes.shape[1], ended) for codes, ended in next(source.stream(segments, 25, 19))]
    assert parts == [(25, False), (44, False), (60, True)] and len(set(seeds[0])) == 3
    segments, source, _ = script([(0, True)] * 7)
    with pytest.raises(MetaVoiceError, match="nothing was said for .* in 7 attempts"):
        list(next(source.stream(segments, 25, 19)))


def test_a_stream_gives_out_a_short_text_once_it_has_ended(script, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "FIVE", ["Hi", *FIVE])
    segments, source, seeds = script([(50, False), (3, True), (30, True)])
    assert [(codes.shape[1], ended) for codes, ended in next(source.stream(segments, 10, 5))] == [(30, True)]
    assert len(set(seeds[0])) == 3


def test_a_stream_without_an_end_is_cut_with_a_warning(script, tts, caplog):
    segments, source, seeds = script([(5000, False)])
    most = frame_limits(tts.bundle, segments[0].text, len(segments[0].ids))[1]
    with caplog.at_level(logging.WARNING):
        *_, (codes, ended) = next(source.stream(segments, 25, 19))
    assert codes.shape[1] == most and ended and len(seeds[0]) == 1
    assert f"came to no end in 1 attempt and was cut after {most} frames" in caplog.text


def test_a_chunk_longer_than_the_window_is_cut_all_the_same(script, tts):
    segments, source, seeds = script([(5000, False)] * 2)
    parts = list(next(source.stream(segments, 9999, 19)))
    most = frame_limits(tts.bundle, segments[0].text, len(segments[0].ids))[1]
    assert [(codes.shape[1], ended) for codes, ended in parts] == [(most, True)]
    assert len(seeds[0]) == 2


def test_codes_are_kept_no_longer_than_needed(script):
    "The source holds no codes of segments that were handed on."
    segments, source, _ = script(*[[(45, True)]] * 3)
    decoded, seen = source.codes(segments), []
    for take, in decoded:
        seen.append(take)
        frame = decoded.gi_frame
        assert frame is None or all(take is not other for group in frame.f_locals["groups"] for other in group)
    assert len(seen) == 3


def test_streamed_codes_are_those_of_the_whole(tts, resolve):
    segment, = tts.segments(["Where is the red book?"], seed=5)
    source = LocalSource(tts.bundle, resolve(takes=1))
    (whole,), = source.codes([segment])
    tokens = []
    parts = list(next(source.stream([segment], 25, 19, tokens.append)))
    assert all(torch.equal(codes, whole.codes[:, :codes.shape[1]]) for codes, _ in parts)
    assert parts[-1][1] and torch.equal(parts[-1][0], whole.codes)
    assert sum(tokens) == 2 * whole.codes.shape[1] + 1
