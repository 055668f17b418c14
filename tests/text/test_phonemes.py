"Phones of a text, and their places among its symbols."
import pytest

from metavoice.text.phonemes import PAUSE, PhoneState, phone_states


def names(phonemes):
    return [state.name for state in phone_states(phonemes)]


@pytest.mark.parametrize("phonemes, expected", [
    ("", "_"), (".", "_"), (" ", "_"), ("ə", "_ ə _"), ("ə.", "_ ə _"), ("ə, b", "_ ə _ b _"), ("ə?! b", "_ ə _ b _"),
    (", ə", "_ ə _"), ("nˈɔːθ", "_ n ɔ θ _"), ("ˈA ˌI", "_ A I _"), ("bˈ", "_ b _"), ("ːb", "_ b _"), ("dd", "_ d d _"),
    ("“b” (d)", "_ b _ d _"), ("b\u2003d", "_ b d _"), ("b…d—b", "_ b _ d _ b _"),
])  # fmt: skip
def test_names(phonemes, expected):
    assert names(phonemes) == [PAUSE if name == "_" else name for name in expected.split()]


def test_places():
    text = "ðə ˈɔːld, mˈæn."
    spans = {state.name: text[state.start : state.end] for state in phone_states(text)[1:]}
    assert spans["ɔ"] == "ˈɔː" and spans["æ"] == "ˈæ" and spans["ð"] == "ð" and spans[PAUSE] == "."
    assert phone_states(text)[0] == PhoneState(PAUSE, 0, 0)


def test_places_cover_the_text_in_order():
    text = "ʃi sˈɛd: “jˈɛs!”, ænd lˈɛft… "
    states = phone_states(text)
    assert all(a.end <= b.start for a, b in zip(states, states[1:])) and states[-1].end == len(text.rstrip())
    covered = {i for state in states for i in range(state.start, state.end)}
    assert all(text[i] == " " for i in set(range(len(text))) - covered)


def test_pauses_alone_are_optional_and_never_neighbours():
    states = phone_states("a. , b ?! ,")
    assert [state.optional for state in states] == [True, False, True, False, True]
