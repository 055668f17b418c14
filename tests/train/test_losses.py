"The loss of the first stage against the released code's."
import pytest
import torch

from metavoice.bundle.released import convert_stage_config
from metavoice.core.layout import TokenLayout
from metavoice.models.gpt import load_gpt
from metavoice.train.losses import first_stage_loss


def test_the_loss_is_the_golden_one(golden, expected):
    checkpoint = torch.load(golden / "first_stage.pt", weights_only=True)
    model = load_gpt(checkpoint["model"], convert_stage_config(checkpoint), "golden")
    ids, who = torch.from_numpy(expected["fs_ids"]).long(), torch.from_numpy(expected["fs_spk"])
    loss = first_stage_loss(model, ids[:, None], ids.roll(-1, 1), None, who, TokenLayout())["audio"].item()
    assert loss == pytest.approx(float(expected["fs_loss"]), rel=1e-4)
