"Pretraining the codec: codebooks grouped by phones, and resuming."
import numpy as np
import pytest
import torch

from metavoice.core.errors import OptionError
from metavoice.models.nano_codec import NanoCodec, NanoCodecConfig, ResidualQuantiser
from metavoice.text.phonemes import PHONES
from metavoice.train.codec import EMACodebooks, group_entries, group_sizes, train_codec
from metavoice.train.optim import TrainingConfig
from metavoice.train.phone_corpus import prepare_corpus

SHAPE = dict(hop=960, width=16, hidden=32, encoder_blocks=2, decoder_blocks=2, latent_dim=8, codebook_size=256)


def new_codec(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NanoCodec(NanoCodecConfig(**SHAPE | dict(phones=[*PHONES]) | options))


@pytest.fixture(scope="module")
def corpus(demo_corpus, tmp_path_factory):
    return prepare_corpus([demo_corpus.path], tmp_path_factory.mktemp("prepared"), new_codec())


@pytest.mark.parametrize("counts", [[1000.0, 100, 10, 0], [1.0] * 4, [0.0] * 5 + [1e6]])
def test_groups_fill_the_codebook(counts):
    sizes = group_sizes(np.array(counts), 64)
    assert sizes.sum() == 64 and sizes.min() >= 4 and (sizes[np.argsort(counts)] == np.sort(sizes)).all()


def test_too_small_codebooks_and_other_phones(corpus):
    with pytest.raises(OptionError, match="a codebook of 16 entries is too small for 5 phones"):
        group_sizes(np.ones(5), 16)
    for phones in (None, ["ʘ", "ǃ"]):
        with pytest.raises(OptionError, match="none of the codec's phones"):
            group_entries(corpus, new_codec(phones=phones))


def test_entries_stay_in_their_group():
    rng = torch.Generator().manual_seed(0)
    quantiser, entry_phones = ResidualQuantiser(3, 16, 4), torch.tensor([0] * 8 + [1] * 4 + [2] * 4)
    learner = EMACodebooks(quantiser, entry_phones)
    phones = torch.randint(2, (4, 100), generator=rng)  # phone 2 is never said
    centres = torch.tensor([[0.0] * 4, [5.0] * 4])
    latent = centres[phones].mT + torch.randn(4, 4, 100, generator=rng)
    learner.start(latent, phones, rng)
    for _ in range(3):
        depths = learner(latent, phones, rng)
    assert depths.shape == (3, 4, 4, 100)
    errors = (depths - latent).square().mean((1, 2, 3))
    assert errors[0] > errors[1] > errors[2] and errors[0] < 1
    book = quantiser.codebooks[0]
    assert (book[:8].mean(1) < 2.5).all() and (book[8:12].mean(1) > 2.5).all()
    said = learner.nearest(0, latent.mT.flatten(0, 1), phones.flatten())
    assert torch.equal(entry_phones[said], phones.flatten())
    unknown = learner.nearest(0, latent.mT.flatten(0, 1), torch.full((400,), -1))
    assert torch.equal(unknown, quantiser.nearest(latent.mT.flatten(0, 1), 0))


def test_idle_entries_move_to_their_phone():
    rng, rows = torch.Generator().manual_seed(0), torch.arange(6.0)[:, None].expand(6, 2)
    quantiser, phones = ResidualQuantiser(2, 4, 2), torch.tensor([0, 0, 0, 1, 1, 1])
    learner = EMACodebooks(quantiser, torch.tensor([0, 1, 1, 2]))
    assert learner.move(0, torch.arange(4), rows, phones, rng).tolist() == [0, 1, 2]
    book = quantiser.codebooks[0, :, 0]
    assert book[0] < 3 <= book[1:3].min() and book[3] == 0
    assert learner.move(1, torch.tensor([2]), rows, phones, rng).tolist() == [2]


def test_a_stopped_training_ends_as_one_that_ran_through(corpus, tmp_path):
    options = dict(batch_size=2, compile=False, log_every=1, unquantised=0.3)
    config = dict(learning_rate=2e-3, precision="float32")
    whole = train_codec(new_codec(), corpus, tmp_path / "whole", TrainingConfig(steps=6, **config), **options)

    def stop(line):
        if line["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_codec(new_codec(), corpus, tmp_path / "two", TrainingConfig(steps=6, **config), **options, on_log=stop)
    resumed = train_codec(new_codec(), corpus, tmp_path / "two", TrainingConfig(steps=6, **config), **options)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(a, b), name
    assert whole.quantiser.codebooks.any() and len(whole.entry_phones.unique()) == len(PHONES)
