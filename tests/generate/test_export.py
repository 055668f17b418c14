"Exported ONNX files: the README's program speaks, and equals PyTorch."
import json
import re

import numpy as np
import pytest
import torch
from tiny import write_tiny_bundle

from metavoice.bundle.load import load_bundle
from metavoice.core.errors import OptionError, OutputError
from metavoice.generate.codes import make_phone_track
from metavoice.generate.export import EXAMPLE_TEXT, export_onnx
from metavoice.generate.fine_codes import predict_fine_codes
from metavoice.generate.tts import TTS
from metavoice.train.batches import TokenizedUtterance, collate_first_stage
from metavoice.train.tokens import add_phone_context

ort = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module", params=["nano", "phonemes"])
def exported(request, tmp_path_factory):
    "A model, its exported folder, and the names of the README's program."
    folder = tmp_path_factory.mktemp(request.param)
    source = "nano" if request.param == "nano" else write_tiny_bundle(folder/"model", phonemes=True)
    bundle = load_bundle(source, "cpu", "float32", engine="torch")
    seen = []
    left_out = export_onnx(bundle, folder/"onnx", lambda *progress: seen.append(progress))
    assert seen[-1][0] == "export" and seen[-1][1] == seen[-1][2] and set(left_out) <= {"mbd"}
    program = re.search(r"```python\n(.*?)```", (folder/"onnx"/"README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    names = {"__name__": "example"}
    exec(program.replace("Path('.')", f"Path({str(folder / 'onnx')!r})"), names)
    return bundle, folder/"onnx", names


def first_stage_logits(names, ids, speaker):
    "The logits after each token of the streams `ids`, one call for the first half and one for each later token."
    (ids, *context), session, found = ids, names["first"], []
    half = len(ids) // 2
    caches = {o.name: np.zeros((1, o.shape[1], len(ids), o.shape[3]), np.float32)
              for o in session.get_inputs() if o.name.startswith(("keys", "values"))}
    outputs = [o.name for o in session.get_outputs()]
    for start, end in [(0, half), *((n, n + 1) for n in range(half, len(ids)))]:
        inputs = dict(ids=ids[None, start:end], positions=np.arange(start, end)[None], speaker=speaker[None], **caches)
        inputs |= dict(past=np.array([end - 1], np.int32), total=np.array([end], np.int32))
        inputs |= dict(context=np.stack(context, -1)[None, start:end]) if context else {}
        values = dict(zip(outputs, session.run(None, inputs)))
        caches = {name: values[f"new_{name}"] for name in caches}
        found.append(values["logits"][0])
    return half, np.stack(found)


@torch.inference_mode()
def test_the_program_of_the_readme_equals_torch(exported):
    bundle, _, names = exported
    example, tokens = names["example"], names["tokens"]
    speaker, rng = np.array(example["voices"][example["voice"]], np.float32), np.random.default_rng(0)
    track = names["Track"](**example["track"]) if "track" in example else None
    coarse = names["generate_codes"](example["ids"], speaker, rng, track)
    assert coarse.shape[0] == 2 and coarse.shape[1] > 2 and 0 <= coarse.min() and coarse.max() < tokens["codebook_size"]
    u = TokenizedUtterance(example["ids"], torch.from_numpy(coarse).short(), [], torch.empty(0), "", 0)
    (u,), streams = add_phone_context([u], bundle.tokeniser, bundle.codec), bundle.first.config.streams
    ids = collate_first_stage([u], bundle.layout, torch.Generator(), corrupt=0, drop_text=0, streams=streams)[0]
    ids = ids[:, :, :min(200, len(u.text) + coarse.size)]
    start, logits = first_stage_logits(names, ids[0].numpy(), speaker)
    expected = bundle.first(ids, torch.from_numpy(speaker)[None])[0][0].numpy()[start - 1:]
    assert abs(logits - expected).max() < 1e-4 * abs(expected).max()
    codes = names["fine_codes"](example["ids"], coarse, speaker)
    inputs = [example["ids"]], [torch.from_numpy(coarse)], torch.from_numpy(speaker)[None], [torch.Generator()]
    options = dict(temperature=0, padded=False, layout=bundle.layout)
    assert np.array_equal(codes, predict_fine_codes(bundle.second, *inputs, **options)[0].numpy())
    check_sound(bundle.codec, names, codes)


def check_sound(codec, names, codes):
    "The codec's network and `vocode` equal PyTorch."
    pitch, filters = map(torch.from_numpy, names["codec"].run(None, dict(codes=codes[None])))
    expected, voice, breath = codec.predict_filters(codec.latent(torch.from_numpy(codes)[None]))
    assert (pitch - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (filters - torch.cat([voice, breath], 1).mT).abs().max() < 1e-4 * filters.abs().max()
    noise = torch.randn(pitch.shape[1] * codec.synthesis_hop, generator=torch.Generator().manual_seed(0))
    samples = torch.from_numpy(names["vocode"](pitch[0].numpy(), filters[0].numpy(), noise.numpy()))
    expected = codec.vocode(pitch, *filters.mT.chunk(2, 1))[0]
    assert samples.shape == expected.shape
    off = (samples - expected).abs() / expected.abs().max()
    assert off.quantile(.99) < 5e-4 and off.max() < 2e-2  # where rounding adds a harmonic, a few samples differ more


def test_speech_follows_the_phones(exported):
    "The program's track allows what `PhoneTrack` allows."
    bundle, _, names = exported
    segment = TTS(bundle).segments([EXAMPLE_TEXT], seed=0)[0]
    theirs = make_phone_track(bundle, segment.ids)
    if theirs is None:
        assert "track" not in names["example"]
        return
    ours, rng = names["Track"](**names["example"]["track"]), np.random.default_rng(1)
    for _ in range(300):
        (mask, ends), (expected, may_end) = ours.mask(), theirs.allowed()
        assert np.array_equal(mask, expected) and ends == may_end
        if not mask.any():
            break
        code = int(rng.choice(np.flatnonzero(mask)))
        ours.advance(code)
        theirs.advance(code)
    assert theirs.may_end


def test_the_program_speaks(exported):
    _, _, names = exported
    samples = names["speak"]()
    assert samples.dtype == np.float32 and np.isfinite(samples).all() and samples.std() > 1e-3
    assert np.array_equal(samples, names["speak"]()) and not np.array_equal(samples, names["speak"](seed=1))


def test_graphs_json_describes_every_input_and_output(exported):
    _, folder, _ = exported
    about = json.loads((folder/"graphs.json").read_text(encoding="utf-8"))
    files = {path.name for path in folder.glob("*.onnx")}
    assert {entry["file"] for entry in about["graphs"].values()} == files
    for entry in about["graphs"].values():
        session = ort.InferenceSession(folder/entry["file"])
        for kind, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert [o.name for o in values] == [o["name"] for o in entry[kind]]
            types = dict(float32="tensor(float)", int64="tensor(int64)", int32="tensor(int32)")
            assert [o.type for o in values] == [types[o["dtype"]] for o in entry[kind]]
            assert all(o["meaning"] for o in entry[kind])


def test_parts_without_a_graph_are_named(tmp_path, monkeypatch):
    "Without a first stage the folder has no program, and says why."
    monkeypatch.setattr("metavoice.generate.export.MAX_FILE_BYTES", 10**6)
    left_out = export_onnx(load_bundle(write_tiny_bundle(tmp_path/"model"), "cpu", "float32"), tmp_path/"onnx")
    assert left_out == {}
    left_out = export_onnx(load_bundle("nano", "cpu", "float32"), tmp_path/"onnx")
    assert left_out["first"] == "its float32 weights don't fit into an ONNX file of 2 GB"
    readme = (tmp_path/"onnx"/"README.md").read_text(encoding="utf-8")
    assert "- first: its float32" in readme and "```" not in readme
    assert not (tmp_path/"onnx"/"first.onnx").exists() and not (tmp_path/"onnx"/"example.json").exists()


def test_a_failed_export_changes_nothing(tmp_path, monkeypatch):
    bundle = load_bundle(write_tiny_bundle(tmp_path/"model"), "cpu", "float32")
    (tmp_path/"onnx").mkdir()
    (tmp_path/"onnx"/"graphs.json").write_text("old")
    monkeypatch.setattr("metavoice.generate.export.describe_model", lambda *_: 1/0)
    with pytest.raises(ZeroDivisionError):
        export_onnx(bundle, tmp_path/"onnx")
    assert [p.name for p in (tmp_path/"onnx").iterdir()] == ["graphs.json"]
    (tmp_path/"onnx"/"thesis.txt").touch()
    with pytest.raises(OutputError, match="it holds thesis.txt"):
        export_onnx(bundle, tmp_path/"onnx")
    with pytest.raises(OptionError, match="load it with device='cpu', dtype='float32'"):
        export_onnx(load_bundle(tmp_path/"model", "cpu", "bfloat16"), tmp_path/"other")
    assert not (tmp_path/"other").exists()
