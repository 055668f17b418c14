"`metavoice info`."
import json


def test_info(run):
    code, out, err = run("info")
    assert (code, err) == (0, "") and out.startswith("nano, from ") and "first_stage" not in out
    for word in ("tokeniser", "speaker_encoder", "Apache-2.0", "voices:", "3 s"):
        assert word in out, out
    about = json.loads(run("info", "--json")[1])
    assert about["name"] == "nano" and about["parts"]["first"]["parameters"] > 1e5
