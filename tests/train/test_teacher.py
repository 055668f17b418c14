"Speakers, phone times and the model of the teacher, with a tiny graph that has Kokoro's interface."
import json

import numpy as np
import pytest

from metavoice.core.errors import BundleError, MetaVoiceError, OptionError
from metavoice.train.teacher import (
    FRAME,
    HELD_OUT_PAIRS,
    HELD_OUT_VOICES,
    KOKORO_VOICES,
    SHIPPED_VOICES,
    KokoroTeacher,
    TeacherFiles,
    TeacherSpeaker,
    add_durations,
    group_speakers,
    phone_times,
    word_times,
)

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def write_graph(path, durations=True, noise=False):
    "Each phoneme lasts as many frames as its number says, divided by the speed; the sound is its style's tone."
    h, T = onnx.helper, onnx.TensorProto
    nodes = [
        h.make_node("Cast", ["tokens"], ["numbers"], to=T.FLOAT),
        h.make_node("Div", ["numbers", "speed"], ["scaled"]),
        h.make_node("Round", ["scaled"], ["rounded"]),
        h.make_node("Clip", ["rounded", "one"], ["durations"]),
        h.make_node("ReduceSum", ["durations"], ["frames"], keepdims=0),
        h.make_node("Mul", ["frames", "frame"], ["length"]),
        h.make_node("Range", ["zero", "length", "one"], ["time"]),
        h.make_node("ReduceMean", ["style"], ["pitch"], keepdims=0),
        h.make_node("Mul", ["time", "pitch"], ["phase"]),
        h.make_node("Log" if noise else "Sin", ["phase"], ["audio"]),
    ]
    values = dict(one=1.0, zero=0.0, frame=600.0)
    constants = [h.make_tensor(name, T.FLOAT, [], [value]) for name, value in values.items()]
    inputs = [("tokens", T.INT64, [1, None]), ("style", T.FLOAT, [1, 256]), ("speed", T.FLOAT, [1])]
    outputs = [("audio", T.FLOAT, [None])] + [("durations", T.FLOAT, [1, None])] * durations
    infos = [[h.make_tensor_value_info(*one) for one in some] for some in (inputs, outputs)]
    graph = h.make_graph(nodes, "tiny", *infos, constants)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 13)], ir_version=8), str(path))


def write_voices(folder):
    (folder / "voices").mkdir(parents=True)
    for n, voice in enumerate(("af_heart", "am_puck", "bf_emma"), 1):
        table = np.full((510, 256), n / 20, np.float32)
        table[:, 0] = np.arange(510)
        table.tofile(folder / "voices" / f"{voice}.bin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "tiny"
    write_voices(folder)
    write_graph(folder / "model.onnx")
    (folder / "vocab.json").write_text(json.dumps({mark: n for n, mark in enumerate(".abc ", 1)}))
    return folder


@pytest.mark.parametrize(
    "name", ["af_heart", "am_puck@1.15", "af_bella*0.40+bf_emma*0.60", "a*0.30+b*0.30+c*0.40@0.85"]
)
def test_names_of_speakers_are_reversible(name):
    assert TeacherSpeaker.parse(name).name == name


@pytest.mark.parametrize(
    "name",
    ["", "af_heart*0.5", "a*0.5+b*0.6", "a*0+b*1", "a b", "a+", "a@fast", "a@9", "a*1@", "a" * 9999 + "*", "a@0.1"],
)
def test_no_speaker(name):
    with pytest.raises(OptionError):
        TeacherSpeaker.parse(name)


def test_accent_is_the_heavier_voice():
    assert TeacherSpeaker.parse("af_bella*0.40+bf_emma*0.60").accent == "british"
    assert TeacherSpeaker.parse("af_bella*0.60+bf_emma*0.40").accent == "american"


def test_held_out_speakers_are_apart():
    groups = group_speakers()
    names = [speaker.name for found in groups.values() for speaker in found]
    assert len(names) == len(set(names)) == 76 and group_speakers() == groups
    trained = [speaker for group in ("shipped", "base", "blend") for speaker in groups[group]]
    assert len(trained) == 68
    assert not {voice for speaker in trained for voice, _ in speaker.parts} & set(HELD_OUT_VOICES)
    pairs = {frozenset(voice for voice, _ in speaker.parts) for speaker in trained}
    assert not pairs & {frozenset(pair[:2]) for pair in HELD_OUT_PAIRS}
    assert all(0.85 <= speaker.speed <= 1.15 for speaker in trained)
    assert {voice for found in groups.values() for s in found for voice, _ in s.parts} == set(KOKORO_VOICES)
    for speaker in groups["blend"]:
        shipped = [weight for voice, weight in speaker.parts if voice in SHIPPED_VOICES]
        assert len(shipped) == 2 or max(shipped, default=0) <= 0.5, speaker.name


def test_phone_and_word_times():
    phonemes, durations = "ðə ɹˈɛd bˈʊk.", [17, 2, 2, 3, 2, 3, 2, 3, 3, 2, 4, 4, 13, 7, 1]
    phones = phone_times(phonemes, durations)
    assert [phone for phone, _ in phones] == ["pau", *"ðəɹɛdbʊk", "pau"]
    ends = [end for _, end in phones]
    assert ends == sorted(ends) and ends[0] == 15 / 40 and ends[-1] == sum(durations) / 40
    words = word_times("The red book.", phonemes, durations)
    assert len(words) == 3 and [words[0][0], words[-1][1]] == [ends[0], ends[-2]]
    assert words[0][1] == words[1][0] == ends[2]
    assert word_times("The red, red book.", phonemes, durations) == []
    with pytest.raises(OptionError, match="2 durations for 1 phonemes, not 3"):
        phone_times("a", [1, 1])


@pytest.mark.parametrize("phonemes", ["a", ".", " ", "ˈ", "ː", "a, b.", " a", "a ", "aˈ", "…a", "“a”  b?!", "ˈaːʲ ˌb"])
def test_phone_times_of_odd_texts(phonemes):
    durations = list(range(2, len(phonemes) + 4))
    phones = phone_times(phonemes, durations)
    ends = [end for _, end in phones]
    assert ends == sorted(ends) and phones[0][0] == phones[-1][0] == "pau" and ends[-1] == sum(durations) / 40
    assert all(phone == "pau" or phone in "ab" or phone in "ːˈ" for phone, _ in phones)


def test_teacher(folder):
    teacher = KokoroTeacher.from_pretrained(folder)
    heart, puck = TeacherSpeaker.parse("af_heart"), TeacherSpeaker.parse("am_puck")
    samples, durations = teacher("abc.", heart)
    assert durations == [1, 2, 3, 4, 1, 1]
    assert samples.dtype == np.float32 and len(samples) == sum(durations) * FRAME
    assert teacher("abc.", TeacherSpeaker.parse("af_heart@2.00"))[1] == [1, 1, 2, 2, 1, 1]
    blend = teacher.style(TeacherSpeaker.parse("af_heart*0.25+am_puck*0.75"), 7)
    assert blend.shape == (1, 256)
    assert np.allclose(blend, 0.25 * teacher.style(heart, 7) + 0.75 * teacher.style(puck, 7))
    assert teacher.style(heart, 7)[0, 0] == 7 and teacher.style(heart, 5000)[0, 0] == 509
    wrong = (("abz", "unknown phonemes .'z'"), ("", "0 phonemes"), ("a" * 509, "509 phonemes; use 1 to"))
    for phonemes, reason in wrong:
        with pytest.raises(MetaVoiceError, match=reason):
            teacher(phonemes, heart)
    with pytest.raises(BundleError, match="has no voices/af_nobody.bin"):
        teacher("abc", TeacherSpeaker.parse("af_nobody"))


def test_the_layout_of_the_hub(folder, tmp_path):
    write_voices(tmp_path)
    (tmp_path / "onnx").mkdir()
    write_graph(tmp_path / "onnx" / "model.onnx")
    vocab = json.loads((folder / "vocab.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(dict(model=dict(vocab=vocab))))
    speaker = TeacherSpeaker.parse("bf_emma")
    samples, durations = KokoroTeacher.from_pretrained(tmp_path)("ab", speaker)
    expected = KokoroTeacher.from_pretrained(folder)("ab", speaker)
    assert durations == expected[1] and np.array_equal(samples, expected[0])


def test_the_hub(folder, tmp_path, monkeypatch):
    write_voices(tmp_path / "hub")
    (tmp_path / "hub" / "onnx").mkdir()
    write_graph(tmp_path / "hub" / "onnx" / "model.onnx", durations=False)
    vocab = json.loads((folder / "vocab.json").read_text())
    (tmp_path / "hub" / "tokenizer.json").write_text(json.dumps(dict(model=dict(vocab=vocab))))
    fetched = []

    def download(repo, files, revision):
        fetched.append((repo, *files, revision))
        return (tmp_path / "hub" / files[0]).parent

    monkeypatch.setattr("metavoice.train.teacher.download", download)
    monkeypatch.setenv("METAVOICE_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        teacher = KokoroTeacher.from_pretrained("owner/name", revision="abc")
        assert teacher("ab", TeacherSpeaker.parse("bf_emma"))[1] == [1, 2, 3, 1]
    assert fetched[0] == ("owner/name", "onnx/model.onnx", "abc") and len(list((tmp_path / "cache").iterdir())) == 1
    with pytest.raises(BundleError, match="neither a folder nor a repository"):
        TeacherFiles("/no/such/folder")


def test_a_graph_without_durations(tmp_path, folder):
    write_graph(tmp_path / "plain.onnx", durations=False)
    with pytest.raises(BundleError, match="no output for durations"):
        KokoroTeacher(tmp_path / "plain.onnx", {}, lambda name: None)
    add_durations(tmp_path / "plain.onnx", tmp_path / "made.onnx")
    vocab = TeacherFiles(folder).vocab()
    teacher = KokoroTeacher(tmp_path / "made.onnx", vocab, TeacherFiles(folder).voice)
    assert teacher("ab", TeacherSpeaker.parse("bf_emma"))[1] == [1, 2, 3, 1]
    with pytest.raises(BundleError, match="isn't Kokoro's graph: 1 Clip nodes, 2 outputs"):
        add_durations(tmp_path / "made.onnx", tmp_path / "again.onnx")


def test_sound_that_is_no_number(tmp_path, folder):
    write_graph(tmp_path / "model.onnx", noise=True)  # log 0
    teacher = KokoroTeacher(tmp_path / "model.onnx", TeacherFiles(folder).vocab(), TeacherFiles(folder).voice)
    with pytest.raises(MetaVoiceError, match="the teacher failed at 'ab'"):
        teacher("ab", TeacherSpeaker.parse("bf_emma"))


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(BundleError, match="has no model.onnx or onnx/model.onnx"):
        KokoroTeacher.from_pretrained(tmp_path)
