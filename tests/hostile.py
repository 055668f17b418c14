"""Manifests and models that try to break the loader, and a process that tries them one by one, each in a fork.

`python tests/hostile.py FOLDER [CASE ...]` writes a tiny model and a tiny release there and prints a line a case.
"""
import json
import os
import pickle
import shutil
import signal
import struct
import sys
import time
import zipfile
from pathlib import Path

HANG_SECONDS = 60  # after which a case is killed
PROTOCOL = b"\x80\x02"


def first(**changes):
    "Change the configuration of the first stage."
    return lambda m: m["parts"]["first"]["config"].update(changes)


def part(name, **changes):
    "Change the configuration of a part."
    return lambda m: m["parts"][name]["config"].update(changes)


def entry(name, **changes):
    "Change the entry of a part."
    return lambda m: m["parts"][name].update(changes)


def unet(**changes):
    "Change the U-Net of the first band."
    return lambda m: m["parts"]["mbd"]["config"]["bands"][0]["unet"].update(changes)


def schedule(**changes):
    "Change the noise schedule of the first band."
    return lambda m: m["parts"]["mbd"]["config"]["bands"][0]["schedule"].update(changes)


def processor(**changes):
    "Change the processor of the first band."
    return lambda m: m["parts"]["mbd"]["config"]["bands"][0]["processor"].update(changes)


def bands(count):
    "Repeat the first band."
    return lambda m: m["parts"]["mbd"]["config"].update(bands=m["parts"]["mbd"]["config"]["bands"][:1] * count)


def default(**changes):
    "Change a default option."
    return lambda m: m["defaults"].update(changes)


def voice(**changes):
    "Change the entry of the voice."
    return lambda m: m["voices"]["awb"].update(changes)


def top(**changes):
    "Change the manifest itself."
    return lambda m: m.update(changes)


def lora(**changes):
    "Make the first stage an adapter."
    base = dict(model="nano", revision=None, key="0")
    adapter = dict(kind="lora", file="adapter.safetensors", alpha=1.0, rank=4)

    def change(m):
        m["base"] = base | changes.get("base", {}) if isinstance(changes.get("base", {}), dict) else changes["base"]
        m["parts"]["first"] = adapter | changes.get("entry", {})

    return change


def nested(depth):
    "A list in a list in a list."
    value = []
    for _ in range(depth):
        value = [value]
    return value


MANIFESTS = {  # name → change of a valid manifest
    "layers": first(n_layer=10**8),
    "many layers": first(n_layer=3000),
    "negative layers": first(n_layer=-1),
    "layers as text": first(n_layer="2"),
    "layers as fraction": first(n_layer=1.5),
    "layers as yes": first(n_layer=True),
    "width": first(n_embd=2 * 10**9),
    "width beyond 64 bits": first(n_embd=10**30),
    "no heads": first(n_head=0),
    "no window": first(block_size=0),
    "window": first(block_size=10**12),
    "vocabulary": first(vocab_sizes=[10**15]),
    "vocabularies": first(vocab_sizes=[16] * 10**6),
    "vocabulary of words": first(vocab_sizes=["a"]),
    "vocabulary as a number": first(vocab_sizes=5),
    "output heads": first(target_vocab_sizes=[16] * 10**5),
    "multiple of zero": first(swiglu_multiple_of=0),
    "multiple of much": first(swiglu_multiple_of=10**12),
    "epsilon": first(rmsnorm_eps="small"),
    "dropout": first(dropout=7),
    "bias": first(bias=3),
    "speaker size": first(speaker_emb_size=10**12),
    "norm": first(norm_type=["rmsnorm"]),
    "second stage's layers": part("second", n_layer=10**7),
    "codec's hop": part("codec", hop=0),
    "codec's blocks": part("codec", encoder_blocks=10**8),
    "codec's finest blocks": part("codec", finest_blocks=10**7, finest_split=0),
    "codec's mels": part("codec", n_mels=10**12),
    "codec's books": part("codec", n_codebooks=10**9, codebook_size=10**9),
    "codec's window": part("codec", window=-3),
    "codec's rate": part("codec", sample_rate=0),
    "codec's phones": part("codec", phones=5),
    "codec's analysis": part("codec", n_fft=10**12),
    "listener's blocks": part("listener", blocks=10**7),
    "listener's alphabet": part("listener", alphabet=5),
    "listener's reading": part("listener", reads="minds"),
    "listener's width": part("listener", wide=0),
    "bands": bands(10**5),
    "no bands": bands(0),
    "bands as a number": part("mbd", bands=4),
    "depth": unet(depth=10**7),
    "growth": unet(growth=1e300),
    "stride": unet(stride=0),
    "kernel": unet(kernel=1),
    "groups": unet(norm_groups=0),
    "residual blocks": unet(res_blocks=10**6),
    "embedded steps": unet(num_steps=10**13),
    "other steps": schedule(num_steps=5000),
    "steps": schedule(num_steps=10**12),
    "exponent": schedule(exponent=0),
    "beta": schedule(beta_end="much"),
    "processor's bands": processor(n_bands=10**12),
    "processor's power": processor(power="high"),
    "piece_tokens as text": default(piece_tokens="many"),
    "piece_tokens": default(piece_tokens=10**9),
    "negative piece_tokens": default(piece_tokens=-5),
    "loudness": default(loudness="loud"),
    "endless loudness": default(loudness=float("inf")),
    "attenuation": default(attenuation_limit=None),
    "level": default(reference_level=[1, 2, 3]),
    "second": default(second=5),
    "second's option": default(second=dict(cheat=True)),
    "second's temperature": default(second=dict(temperature="hot")),
    "diffusion": default(mbd=[1]),
    "diffusion's option": default(mbd=dict(bands=10**9)),
    "guidance": default(guidance=[3.0]),
    "takes": default(takes=10**9),
    "vocoder": default(vocoder=5),
    "no default": top(defaults=[]),
    "name": top(name=dict(a=1)),
    "long name": top(name="n" * 10**6),
    "deep": top(extra=nested(500), name=nested(500)),
    "reference": top(minimum_reference=float("nan")),
    "layout": top(layout=dict(codebook_size="big")),
    "size of the layout": top(layout=dict(codebook_size=10**18, text_ranks=260)),
    "ranks of the layout": top(layout=dict(codebook_size=1024, text_ranks=-1)),
    "licences": top(licences=dict(first=5)),
    "voices": top(voices=dict(awb=5)),
    "voice without a file": lambda m: m["voices"]["awb"].pop("file"),
    "voice's file": voice(file=5),
    "voice's long file": voice(file="v" * 5000),
    "voice's nul": voice(file="a\0b"),
    "voice's source": voice(source=["a"]),
    "voice elsewhere": voice(file="/etc/passwd"),
    "many voices": lambda m: m["voices"].update({f"v{i}": m["voices"]["awb"] for i in range(10**5)}),
    "part as a number": lambda m: m["parts"].update(first=5),
    "part without a kind": lambda m: m["parts"]["first"].pop("kind"),
    "kind as a list": entry("first", kind=["gpt"]),
    "no configuration": lambda m: m["parts"]["codec"].pop("config"),
    "configuration as a list": entry("listener", config=[1]),
    "long file": entry("first", file="f" * 5000),
    "no file": entry("second", file=None),
    "adapter": entry("first", adapter=5),
    "adapter with a file": entry("first", adapter=dict(file="x", scale="y")),
    "repository": entry("mbd", repo="../../etc", revision="main"),
    "repository without a revision": entry("mbd", repo="someone/something"),
    "rank zero": lora(entry=dict(rank=0)),
    "rank": lora(entry=dict(rank="four")),
    "base": lora(base=5),
    "base without a model": lora(base=dict(model=None)),
    "base as text": lambda m: m.update(base="nano"),
}


def zip_file(path, data, records=(), compress=zipfile.ZIP_STORED):
    "Write a checkpoint with a pickle of our own; `data` is its bytes or yields them."
    with zipfile.ZipFile(path, "w", compress, compresslevel=1) as z:
        with z.open("archive/data.pkl", "w", force_zip64=True) as f:
            for chunk in [data] if isinstance(data, bytes) else data:
                f.write(chunk)
        for name, content in [("version", b"3\n"), ("byteorder", b"little"), *records]:
            z.writestr(f"archive/{name}", content)


def text(value):
    "Opcodes of a string."
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    "Opcodes of a whole number."
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def stage_pickle(model_args, model=b"}", before=b")"):
    "A pickle of a stage with a tokeniser of bytes; the arguments are opcodes."
    ranks = b"}(" + b"".join(
        b"c_codecs\nencode\n" + text(chr(i)) + text("latin1") + b"\x86R" + number(i) for i in range(256)
    ) + b"u"
    tokenizer = b"".join((text("name"), text("x"), text("pat_str"), text("."), text("mergeable_ranks"), ranks))
    tokenizer += text("special_tokens") + b"}" + text("<|endoftext|>") + number(256) + b"s"
    meta = b"}" + text("tokenizer") + b"}(" + tokenizer + b"us"
    content = (text("before"), before, text("model_args"), model_args, text("meta"), meta, text("model"), model)
    return PROTOCOL + b"}(" + b"".join(content) + b"u."


def shared(make, depth):
    "Opcodes of a tuple of containers, each with two elements that are the one before, and of the last of them."
    ops = b"(]r" + struct.pack("<I", 0)
    for i in range(depth):
        ops += make(b"j" + struct.pack("<I", i)) + b"r" + struct.pack("<I", i + 1)
    return ops + b"t", b"j" + struct.pack("<I", depth)


def change_stage(folder, change, name="first_stage.pt", legacy=False):
    "Change the content of a stage of the release."
    import torch

    content = torch.load(folder / name, weights_only=True)
    change(content)
    torch.save(content, folder / name, _use_new_zipfile_serialization=not legacy)


def change_config(folder, change):
    "Change the weights of the first stage of a bundle."
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "first_stage.safetensors")
    change(state)
    save_file(state, folder / "first_stage.safetensors")


def bomb(folder):
    "400 MB of text in a pickle that is compressed to 2 MB."
    def parts():
        yield PROTOCOL + b"X" + struct.pack("<I", 400 << 20)
        for _ in range(400):
            yield b"a" * (1 << 20)
        yield b"."
    zip_file(folder / "first_stage.pt", parts(), compress=zipfile.ZIP_DEFLATED)


def bomb_tensor(folder):
    "A compressed tensor."
    with zipfile.ZipFile(folder / "first_stage.pt") as z:
        records = {name: z.read(name) for name in z.namelist()}
    with zipfile.ZipFile(folder / "first_stage.pt", "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in records.items():
            z.writestr(name, content, zipfile.ZIP_DEFLATED if "/data/" in name else zipfile.ZIP_STORED)


def flood(folder):
    "Twenty million empty dictionaries."
    zip_file(folder / "first_stage.pt", PROTOCOL + b"(" + b"}" * (20 << 20) + b"t.")


def copies(folder):
    "A list of 100,000 pairs of which 5,000 dictionaries are made."
    pairs = b"](" + b"".join(b"K\1K\2\x86" for _ in range(100_000)) + b"er" + struct.pack("<I", 0)
    one = b"ccollections\nOrderedDict\nj" + struct.pack("<I", 0) + b"\x85R"
    zip_file(folder / "first_stage.pt", PROTOCOL + b"(" + pairs + one * 5000 + b"t.")


def updates(folder):
    "A dictionary of 50,000 names that becomes the state of 5,000 objects."
    names = b"}(" + b"".join(text(f"n{i}") + b"K\1" for i in range(50_000)) + b"ur" + struct.pack("<I", 0)
    one = b"cargparse\nNamespace\n)\x81j" + struct.pack("<I", 0) + b"b"
    zip_file(folder / "first_stage.pt", PROTOCOL + b"(" + names + one * 5000 + b"t.")


def encodings(folder):
    "A text of 1 MB that is turned into bytes 3,000 times."
    said = text("é" * (1 << 20)) + b"r" + struct.pack("<I", 0)
    one = b"c_codecs\nencode\nj" + struct.pack("<I", 0) + text("latin1") + b"\x86R"
    zip_file(folder / "first_stage.pt", PROTOCOL + b"(" + said + one * 3000 + b"t.")


def reserve(folder):
    "Four gigabytes of zeros by name."
    zip_file(folder / "first_stage.pt", PROTOCOL + b"cbuiltins\nbytearray\n" + number(4 << 30) + b"\x85R.")


def list_bomb(folder):
    "1.5 KB of shared lists among the settings."
    before, last = shared(lambda o: b"](" + o + o + b"e", 60)
    zip_file(folder / "first_stage.pt", stage_pickle(b"}" + text("n_layer") + last + b"s", before=before))


def dict_bomb(folder):
    "Shared dictionaries beside the weights."
    before, last = shared(lambda o: b"}(" + text("a") + o + text("b") + o + b"u", 60)
    zip_file(folder / "first_stage.pt", stage_pickle(b"}", last, before))


def hash_bomb(folder):
    "Shared tuples as a key."
    key = b")" + b"".join(b"r\0\0\0\0" + b"j\0\0\0\0" + b"\x86" for _ in range(60))
    zip_file(folder / "first_stage.pt", PROTOCOL + b"}" + key + b"Ns.")


def own_list(folder):
    "A list that contains itself among the settings."
    zip_file(folder / "first_stage.pt", stage_pickle(b"}" + text("n_layer") + b"]r\0\0\0\0j\0\0\0\0as"))


def deep_list(folder):
    "A list of 200,000 levels among the settings."
    zip_file(folder / "first_stage.pt", stage_pickle(b"}" + text("n_layer") + b"]" * 200_000 + b"a" * 199_999 + b"s"))


def deep_dict(folder):
    "Dictionaries of 100,000 levels as the weights."
    ops = b"}" + (text("a") + b"}") * 100_000 + b"s" * 100_000
    zip_file(folder / "first_stage.pt", stage_pickle(b"}", ops))


def circle(folder):
    "Settings that refer to each other."
    tree = b"comegaconf.dictconfig\nDictConfig\n)\x81}" + text("_content")
    tree += b"}(" + text("n_layer") + text("${a}") + text("a") + text("${n_layer}") + b"usb"
    zip_file(folder / "first_stage.pt", stage_pickle(tree))


def references(folder):
    "Settings each of which refers twice to the one before."
    items = text("a0") + b"K\1" + b"".join(
        text(f"a{i}") + b"](" + text(f"${{a{i - 1}}}") * 2 + b"e" for i in range(1, 60)
    )
    tree = b"comegaconf.dictconfig\nDictConfig\n)\x81}" + text("_content") + b"}(" + items + b"usb"
    zip_file(folder / "first_stage.pt", stage_pickle(tree))


def legacy_storage(folder):
    "A legacy file whose tensor is said to have 10¹⁰ numbers."
    import torch

    torch.save(dict(model=dict(a=torch.zeros(3))), folder / "first_stage.pt", _use_new_zipfile_serialization=False)
    data = (folder / "first_stage.pt").read_bytes()
    at = data.index(b"cpu") + 3
    at = data.index(b"K\x03", at)
    (folder / "first_stage.pt").write_bytes(data[:at] + number(10**10) + data[at + 2 :])


def legacy_string(folder):
    "A legacy file with a text of 3 GB, by its own account."
    (folder / "first_stage.pt").write_bytes(PROTOCOL + b"X" + struct.pack("<I", 3 << 30) + b"a" * 1000)


def legacy_flood(folder):
    "A legacy file of twenty million empty lists."
    (folder / "first_stage.pt").write_bytes(PROTOCOL + b"(" + b"]" * (20 << 20) + b"t.")


def expanded(folder):
    "A weight of 40 GB that is one number."
    import torch

    def change(content):
        content["model"]["_orig_mod.transformer.wpe.weight"] = torch.zeros(1).expand(10**5, 10**5)

    change_stage(folder, change)


def one_storage(folder):
    "Ten thousand weights of one megabyte that are the same megabyte."
    import torch

    shared_weight = torch.zeros(1 << 18)
    change_stage(folder, lambda c: c["model"].update({f"w{i}": shared_weight for i in range(10_000)}))


def stage_layers(folder):
    "Ten million layers in a released stage."
    change_stage(folder, lambda c: c["model_args"].update(n_layer=10**7))


def stage_heads(folder):
    "A second stage without heads."
    change_stage(folder, lambda c: c["model_args"].update(n_head=0), "second_stage.pt")


def stage_tokeniser(folder):
    "A tokeniser whose ranks are tensors."
    import torch

    change_stage(folder, lambda c: c["meta"]["tokenizer"].update(mergeable_ranks={b"a": torch.zeros(3)}))


def stage_special(folder):
    "A special token beyond 64 bits."
    change_stage(folder, lambda c: c["meta"]["tokenizer"].update(special_tokens={"<|endoftext|>": 10**30}))


def stage_meta(folder):
    "A list in place of facts about a stage."
    change_stage(folder, lambda c: c.update(meta=[1]))


def stage_name(folder):
    "A name of a weight that is a number."
    import torch

    change_stage(folder, lambda c: c["model"].update({5: torch.zeros(1)}))


def entries(folder):
    "A zip of 300,000 entries."
    with zipfile.ZipFile(folder / "first_stage.pt", "w") as z:
        for i in range(300_000):
            z.writestr(f"a/{i}", b"")


def big_header(folder):
    "A safetensors file with a header of 60 MB."
    about = json.dumps({f"t{i:07}": dict(dtype="F32", shape=[0], data_offsets=[0, 0]) for i in range(700_000)}).encode()
    (folder / "first_stage.safetensors").write_bytes(len(about).to_bytes(8, "little") + about)


def many_names(folder):
    "Forty thousand empty tensors beside the weights."
    import torch

    change_config(folder, lambda s: s.update({f"t{i}": torch.zeros(0) for i in range(40_000)}))


def integers(folder):
    "Weights that are whole numbers."
    import torch

    change_config(folder, lambda s: s.update({k: v.to(torch.int64) for k, v in s.items()}))


def complex_numbers(folder):
    "Weights that are complex numbers."
    import torch

    change_config(folder, lambda s: s.update({k: v.to(torch.complex64) for k, v in s.items()}))


def no_dimensions(folder):
    "Weights without dimensions."
    change_config(folder, lambda s: s.update({k: v.flatten()[0].clone() for k, v in s.items()}))


def other_phones(folder):
    "A tokeniser with more ranks than the layout."
    path = folder / "tokeniser.json"
    about = json.loads(path.read_text())
    about["ranks"] += [f"{i:06x}" for i in range(0x616161, 0x616161 + 50)]
    about["special_tokens"] = {"<|endoftext|>": 310}
    path.write_text(json.dumps(about))


def tokeniser(**changes):
    "Return a function that changes the tokeniser's file."
    def change(folder):
        path = folder / "tokeniser.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return change


def deep_json(folder):
    "A tokeniser of brackets."
    (folder / "tokeniser.json").write_text("[" * 200_000)


def big_manifest(folder):
    "A manifest of 60 MB."
    (folder / "bundle.json").write_text('{"format": 1, "parts": {}, "extra": [' + "[]," * (20 << 20) + "[]]}")


def encodec(**changes):
    "Return a function that gives a bundle an EnCodec with a hostile configuration."
    def change(folder):
        shutil.copytree(folder.parent / "encodec", folder / "encodec_24khz")
        config = json.loads((folder / "encodec_24khz" / "config.json").read_text()) | changes
        (folder / "encodec_24khz" / "config.json").write_text(json.dumps(config))
        manifest = json.loads((folder / "bundle.json").read_text())
        manifest["parts"]["codec"] = dict(kind="encodec")
        (folder / "bundle.json").write_text(json.dumps(manifest))
    return change


def bands_of(value):
    "Return a function that gives a release's diffusion another number of bands."
    def change(folder):
        import torch

        torch.save(dict(sample_rate=24000, n_bands=value), folder / "mbd_comp_8.pt")
    return change


def bad_adapter(rank):
    "Return a function that puts an adapter with other shapes beside a bundle."
    def change(folder):
        import torch
        from safetensors.torch import save_file

        from metavoice.bundle.manifest import weights_fingerprint

        base = folder.parent / "bundle"
        name = "transformer.h.0.attn.c_attn"
        pair = {f"{name}.lora_A.weight": torch.zeros(rank, 16), f"{name}.lora_B.weight": torch.zeros(48, 2)}
        save_file(pair, folder / "adapter.safetensors")
        key = weights_fingerprint(base / "first_stage.safetensors")
        manifest = json.loads((folder / "bundle.json").read_text())
        lora(base=dict(model=str(base), key=key))(manifest)
        (folder / "bundle.json").write_text(json.dumps(manifest))
    return change


MODELS = dict(  # of a release or, below, of a bundle
    release=[
        bomb, bomb_tensor, flood, copies, updates, encodings, reserve, list_bomb, dict_bomb, hash_bomb, own_list,
        deep_list, deep_dict, circle, references, legacy_storage, legacy_string, legacy_flood, expanded, one_storage,
        stage_layers, stage_heads, stage_tokeniser, stage_special, stage_meta, stage_name, entries,
        *(bands_of(n) for n in (10**9, -1, 0, 0.5, "a")),
    ],
    bundle=[
        big_header, many_names, integers, complex_numbers, no_dimensions, other_phones, deep_json, big_manifest,
        *(tokeniser(**{name: value}) for name, value in (
            ("alphabet", 5), ("alphabet", ["a"]), ("name", ["a"]), ("pat_str", 5), ("pat_str", "("),
            ("pat_str", "(?:a{1000}){1000}"), ("pat_str", r"(a|aa)+\1b(?!c)"), ("pat_str", r"(?:(?=(a+))a+)+$(?<!a)"),
            ("special_tokens", {"<|endoftext|>": "7"}), ("special_tokens", [1]),
            ("special_tokens", {"<|endoftext|>": 2**70}), ("ranks", 5), ("ranks", ["61"] * 300), ("reads", ["a"]),
            ("ranks", [f"{i:08x}" for i in range(300_000)]), ("reads", "phonemes"),
        )),
        *(encodec(**{name: value}) for name, value in (
            ("num_filters", 10**9), ("num_lstm_layers", 10**7), ("hidden_size", 10**7), ("codebook_size", 10**12),
            ("upsampling_ratios", [0]), ("upsampling_ratios", 5), ("target_bandwidths", [1e300]), ("kernel_size", -1),
            ("num_residual_layers", 10**7), ("sampling_rate", "fast"), ("target_bandwidths", []),
        )),
        bad_adapter(4), bad_adapter(10**6),
    ],
)  # fmt: skip


def write_manifest(folder, base, change):
    "Write a bundle with a changed manifest; its files are links to those of another."
    folder.mkdir()
    for path in base.iterdir():
        if path.name != "bundle.json":
            os.symlink(path, folder / path.name)
    manifest = json.loads((base / "bundle.json").read_text())
    change(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))


def write_bases(folder):
    "Write the tiny model `bundle`, the tiny `release` and its `encodec` into a folder."
    from released import write_small_release

    write_small_release(folder)
    write_bundle_of_all_parts(folder / "bundle")


def write_bundle_of_all_parts(path):
    "Write a tiny model with all parts in our own format."
    import torch

    from metavoice.bundle.write import write_bundle
    from metavoice.core.layout import TokenLayout
    from metavoice.models.gpt import GPT, GPTConfig
    from metavoice.models.listener import CTCScorer, CTCScorerConfig
    from metavoice.models.mbd import fit_band_processors, make_mbd
    from metavoice.models.nano_codec import NanoCodec, NanoCodecConfig
    from metavoice.models.speaker_encoder import SpeakerEncoder
    from metavoice.models.unet import UNetConfig
    from metavoice.text.tokeniser import SPLIT_PATTERN, Tokeniser

    layout = TokenLayout(text_ranks=260)
    shape = dict(n_layer=1, n_head=2, n_embd=16, block_size=32, swiglu_multiple_of=16)
    sizes = dict(vocab_sizes=[layout.second_vocab, 1025], target_vocab_sizes=[1025] * 6, causal=False)
    mbd = make_mbd(UNetConfig(latent_dim=8, hidden=8, depth=2, growth=2.0, kernel=24, stride=12), n_bands=2).eval()
    fit_band_processors(mbd, torch.randn(2, 4800))
    codec = NanoCodecConfig(width=16, hidden=16, encoder_blocks=2, decoder_blocks=2, latent_dim=8)
    scorer = CTCScorerConfig(phones=3, alphabet=" ab", width=16, wide=16, hidden=16, blocks=1)
    write_bundle(
        path, name="tiny", tokeniser=Tokeniser.train(["the cat sat on the mat"], 260, SPLIT_PATTERN, name="tiny"),
        first=GPT(GPTConfig(**shape, vocab_sizes=[layout.first_vocab])).eval(), second=GPT(GPTConfig(**shape, **sizes)),
        codec=NanoCodec(codec), speaker_encoder=SpeakerEncoder(), mbd=mbd, listener=CTCScorer(scorer), dtype="float32",
        voices=dict(awb=(Path(__file__).parents[1] / "nbs" / "samples" / "awb_1.ogg", "CMU Flite, voice awb")),
    )  # fmt: skip


def use(folder):
    "Load a model and use all that its files say; returns the messages of errors, and the seconds of the slowest use."
    from metavoice.bundle.load import load_bundle
    from metavoice.core.errors import MetaVoiceError
    from metavoice.generate.options import SpeechOptions, diffusion_options

    begin, errors, slowest = time.perf_counter(), [], 0
    try:
        bundle = load_bundle(folder, "cpu")
    except MetaVoiceError as e:
        return [str(e)], time.perf_counter() - begin
    here = [name for name, entry in bundle.manifest["parts"].items() if "repo" not in entry]
    uses = [lambda name=name: getattr(bundle, name) for name in here]
    uses += [
        lambda: bundle.voices, lambda: SpeechOptions().resolve(bundle), lambda: diffusion_options(bundle),
        lambda: bundle.tokeniser.encode("the cat " + "a" * 60), lambda: json.dumps(bundle.info()),
    ]  # fmt: skip
    for run in uses:
        begin = time.perf_counter()
        try:
            run()
        except MetaVoiceError as e:
            errors.append(str(e))
        slowest = max(slowest, time.perf_counter() - begin)
    return errors, slowest


def outcome(folder):
    "Return how the use of a model ends (refused, loaded, or the kind of an error), its message, and the slowest use."
    try:
        errors, slowest = use(folder)
    except BaseException as e:
        return type(e).__name__, str(e)[:300], 0
    return "refused" if errors else "loaded", (errors or [""])[0], slowest


def try_in_fork(folder, run=outcome):
    "Use a model in a fork of this process; returns how it ends, the seconds it took and the memory in MB it added."
    reader, writer = os.pipe()
    begin = time.perf_counter()
    child = os.fork()
    if not child:
        signal.alarm(HANG_SECONDS)
        os.write(writer, json.dumps(run(folder)).encode()[:60_000])
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        said = answer.read()
    _, status, usage = os.wait4(child, 0)
    unit = 1 if sys.platform == "darwin" else 1024
    killed = f"killed by signal {status & 127}", "", time.perf_counter() - begin
    how, message, seconds = json.loads(said) if said else killed
    return dict(how=how, message=message, seconds=seconds, peak=usage.ru_maxrss * unit / 1e6)


def case_name(change):
    "Return the name of a case: that of its function, with what it was made with."
    made_with = [cell.cell_contents for cell in change.__closure__ or ()]
    return " ".join([change.__qualname__.split(".")[0], *(str(o)[:40] for o in made_with)])


def list_cases():
    "Return the name, the valid model and the change of each case."
    cases = [(f"manifest: {name}", "bundle", change) for name, change in MANIFESTS.items()]
    for base, changes in MODELS.items():
        cases += [(f"{base}: {case_name(change)}", base, change) for change in changes]
    return cases


def write_case(folder, name, base, change):
    "Write a changed copy of a valid model."
    if name.startswith("manifest: "):
        return write_manifest(folder, base, change)
    shutil.copytree(base, folder)
    change(folder)


def run_cases(folder):
    "Print the outcome of each case."
    write_bases(folder)
    outcome(folder / "bundle"), outcome(folder / "release")  # imports
    before = try_in_fork(folder / "bundle")
    print(json.dumps(dict(name="valid", **before)), flush=True)
    for n, (name, base, change) in enumerate(list_cases()):
        if sys.argv[2:] and name not in sys.argv[2:]:
            continue
        case = folder / f"case{n}"
        write_case(case, name, folder / base, change)
        found = try_in_fork(case)
        print(json.dumps(dict(name=name, added=found["peak"] - before["peak"], **found)), flush=True)
        shutil.rmtree(case)


if __name__ == "__main__":
    run_cases(Path(sys.argv[1]))
