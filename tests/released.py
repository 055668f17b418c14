"A small model in the released layout, whose files have the released names, nesting and formats."

import json
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path

import torch

from metavoice.bundle.released import safe_torch_load
from metavoice.core.layout import TokenLayout
from metavoice.models.gpt import GPT, GPTConfig
from metavoice.models.mbd import fit_band_processors, make_mbd
from metavoice.models.speaker_encoder import SpeakerEncoder
from metavoice.models.unet import UNetConfig

GOLDEN = Path(__file__).with_name("golden")
LATENT = 16  # width of the codec's latent


def make_stages():
    "Return two stages of random weights, with the ids of the release, speech that ends, and a window of seven seconds."
    layout = TokenLayout()
    shape = dict(n_layer=2, n_head=2, n_embd=32, block_size=1024, swiglu_multiple_of=16)
    first = GPT(GPTConfig(**shape, vocab_sizes=[layout.first_vocab])).eval()
    vocab = [layout.second_vocab, 1025]
    second = GPT(GPTConfig(**shape, vocab_sizes=vocab, target_vocab_sizes=[1025] * 6, causal=False)).eval()
    with torch.no_grad():  # the first channel is always large; text isn't drawn, the end of audio is sometimes
        first.transformer.wpe.weight[:, 0] = 10
        table = first.transformer.wtes[0].weight
        table[:, 0] = 0
        table[layout.end_of_audio] = 0
        table[layout.end_of_audio, 0] = 0.7
        table[layout.text_offset :, 0] = -2
    return first, second


def save_stage(path, model, tokenizer):
    "Save a stage as the release does."
    args = asdict(model.config)
    del args["speaker_emb_size"]
    content = dict(
        model={f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()},
        model_args=args | dict(attn_kernel_type="torch_attn"),
        config=dict(causal=args["causal"]),
        meta=dict(speaker_cond=True, speaker_emb_size=256, tokenizer=tokenizer),
        iter_num=1,
    )
    torch.save(content, path)


def save_mbd(path):
    "Save two bands of multi-band diffusion as audiocraft does."
    unet = dict(hidden=8, depth=2, growth=2.0, kernel=24, stride=12, codec_dim=LATENT, emb_all_layers=True)
    ours = {k: v for k, v in unet.items() if k != "codec_dim"} | dict(latent_dim=LATENT)
    mbd, content = make_mbd(UNetConfig(**ours), n_bands=2).eval(), dict(sample_rate=24000, n_bands=2)
    fit_band_processors(mbd, torch.randn(2, 24000))
    schedule = dict(beta_t0=1e-5, beta_t1=0.029, beta_exp=7.5, num_steps=1000, repartition="power")
    processor = dict(use=True, name="multi_band_processor", n_bands=1, power_std=1.0)
    for n, band in enumerate(mbd.bands):
        cfg = dict(channels=1, model="unet", schedule=schedule, diffusion_unet=unet, processor=processor)
        states = OrderedDict(band.unet.state_dict()), OrderedDict(band.processor.state_dict())
        content[n] = dict(cfg=cfg, model_state=states[0], processor_state=states[1])
    torch.save(content, path)


def save_encodec(folder):
    "Save a small EnCodec as transformers does."
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        num_filters=4, hidden_size=LATENT, codebook_size=1024, codebook_dim=LATENT, num_lstm_layers=1,
        target_bandwidths=[6.0],
    )
    model = EncodecModel(config)
    for layer in model.quantizer.layers:
        torch.nn.init.normal_(layer.codebook.embed)
    model.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["codebook_size"] == 1024


def write_small_release(folder):
    "Write the five files of the release and EnCodec's folder, `encodec`, beside them; returns the release's folder."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        release = Path(folder) / "release"
        release.mkdir(parents=True)
        tokenizer = safe_torch_load(GOLDEN / "first_stage.pt")["meta"]["tokenizer"]
        for name, model in zip(("first_stage", "second_stage"), make_stages()):
            save_stage(release / f"{name}.pt", model, tokenizer)
        torch.save(dict(model_state=SpeakerEncoder().state_dict()), release / "speaker_encoder.pt")
        save_mbd(release / "mbd_comp_8.pt")
        save_encodec(Path(folder) / "encodec")
    return release
