"`metavoice pretrain`."
from metavoice.train.pretrain import PRETRAIN_STAGES


def test_the_command_offers_all_stages(run, refused):
    code, out, err = run("pretrain", "--help")
    assert (code, err) == (0, "") and ", ".join(["all", *PRETRAIN_STAGES]) in " ".join(out.split())
    refused("pretrain", "--stage", "dinner", words=["'dinner'", "'corpus'"])


def test_invalid_hours_are_refused(refused):
    refused("pretrain", "--hours", "0", words=["'0'", "isn't allowed"])
