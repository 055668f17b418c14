"Constrained decoding: which entries and when the end of audio may be drawn."
import numpy as np
import pytest
import torch

from metavoice.core.errors import BundleError
from metavoice.models.alignment import distinct_states
from metavoice.models.nano_codec import NanoCodec, NanoCodecConfig
from metavoice.models.phone_track import PhoneBook, PhoneTrack, codec_phone_book, mask_logits
from metavoice.text.phonemes import PAUSE, phone_states

NAMES = [PAUSE, *"abdsx"]  # x has no entries
BOOK = PhoneBook(NAMES, np.arange(40) % 5)


def track(phonemes, seconds=0.1, **options):
    return PhoneTrack(BOOK, phone_states(phonemes), seconds, **options)


def allowed(found, held=False):
    "The names of the phones whose entries are allowed, and whether speech may end."
    mask, may_end = found.allowed(held)
    phones = {BOOK.entry_phones[entry] for entry in np.flatnonzero(mask)}
    assert all(mask[BOOK.entry_phones == phone].all() for phone in phones)
    return "".join(sorted("_" if p == 0 else NAMES[p] for p in phones)), may_end


def follow(found, phones):
    for name in phones:
        found.advance(NAMES.index(PAUSE if name == "_" else name))
    return found


@pytest.mark.parametrize("said, expected, may_end", [
    ("", "_b", False), ("_", "_b", False), ("b", "ab", False), ("ba", "ad", False), ("bad", "_ds", False),
    ("bad_", "_s", False), ("bads", "_s", True), ("bads_", "_", True), ("__bbaaddd_ss_", "_", True),
])  # fmt: skip
def test_stay_or_go_on(said, expected, may_end):
    assert allowed(follow(track("bad, s"), said)) == (expected, may_end)


def test_equal_neighbours_count_as_one():
    assert track("add").phones == track("ad").phones
    assert allowed(follow(track("add"), "ad")) == ("_d", True)


def test_a_pause_between_equal_phones_may_be_left_out():
    assert sorted(follow(track("d, d"), "ddd").positions) == [1, 3]
    assert sorted(follow(track("d, d"), "d_d").positions) == [3]


def test_the_longest_stay():
    found = track("ab", 0.3)  # three frames a phone, four a pause
    assert allowed(follow(found, "aa"))[0] == "ab" and allowed(follow(found, "a"))[0] == "b"
    follow(found, "b")
    assert allowed(follow(found, "___")) == ("_", True) and allowed(follow(found, "_")) == ("", True)
    assert allowed(found, held=True) == ("_", False)
    assert follow(found, "_____").may_end


def test_a_stay_is_counted_from_the_latest_arrival():
    found = follow(track("d, d", 0.3), "ddddd")  # three frames each, so the second d has two
    assert allowed(found)[0] == "_d"
    assert allowed(follow(found, "d"))[0] == "_"


def test_the_end_is_held():
    found = follow(track("b"), "b")
    assert allowed(found) == ("_b", True) and allowed(found, held=True) == ("_b", False)


def test_a_text_without_phones():
    assert allowed(track("")) == ("_", True)
    assert allowed(PhoneTrack(BOOK, [], 0.1)) == ("", True)
    assert allowed(PhoneTrack(BOOK, [], 0.1), held=True) == ("_abds", False)


def test_phones_without_entries_are_left_out():
    assert allowed(follow(track("axb"), "a"))[0] == "ab"


def test_a_token_outside_the_track_changes_nothing():
    found = follow(track("ab"), "as")
    assert found.positions == {1: 1} and found.steps == 2


def test_random_walks_say_every_phone():
    rng = np.random.default_rng(0)
    for text in ("bad, sad", "add", "b", "a, , s", "sss"):
        found, said = track(text), []
        while not (found.may_end and rng.random() < 0.5):
            mask, _ = found.allowed()
            token = rng.choice(np.flatnonzero(mask))
            said.append(NAMES[BOOK.entry_phones[token]])
            found.advance(token)
            assert len(said) < 200
        wanted = [state.name for state in distinct_states(phone_states(text)) if not state.optional]
        assert [a for a, b in zip(said, [None, *said]) if a not in (b, PAUSE)] == wanted


def test_logits_of_a_batch():
    rows = [track("ab"), None, follow(track("b"), "b"), follow(track("b"), "b")]
    logits = torch.zeros(4, 100)
    mask_logits(logits, rows, [3], 80)
    open_ = logits.isfinite()
    assert open_[1].all() and open_[:, 40:80].all() and open_[:, 81:].all()
    assert open_[:, 80].tolist() == [False, True, True, False]
    for row, found in enumerate(rows):
        if found is not None:
            assert (open_[row, :40].numpy() == found.allowed(row == 3)[0]).all()
    same = torch.zeros(2, 100)
    mask_logits(same, [None, None], [], 80)
    assert same.isfinite().all()


def test_measured_departures():
    logits = torch.zeros(1, 81)
    logits[0, 40:80] = -torch.inf
    found = track("ab", measure=True)
    mask_logits(logits, [found], [], 80)
    assert found.departures == pytest.approx(1 - 16 / 41, abs=1e-5)


def test_broken_books():
    for entries in (np.array([0, 6]), np.array([-1]), np.zeros((2, 2))):
        with pytest.raises(BundleError, match="phones from 0 to 5"):
            PhoneBook(NAMES, entries)


def test_the_book_of_a_codec():
    shape = dict(width=8, hidden=8, encoder_blocks=2, decoder_blocks=2, latent_dim=4, codebook_size=16)
    assert codec_phone_book(NanoCodec(NanoCodecConfig(**shape))) is None
    assert "entry_phones" not in NanoCodec(NanoCodecConfig(**shape)).state_dict()
    codec = NanoCodec(NanoCodecConfig(**shape, phones=NAMES))
    codec.entry_phones.copy_(torch.arange(16) % 6)
    assert codec.state_dict()["entry_phones"].dtype == torch.int16
    assert codec_phone_book(codec).ids == {name: i for i, name in enumerate(NAMES)}
