"Every command: no file is replaced that metavoice didn't make, and no control character reaches a terminal."
import ast
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from metavoice.cli.commands import make_parser
from metavoice.cli.common import ProgressBar, output_file
from metavoice.core.errors import OutputError
from metavoice.measure.report import save_evaluation, save_figure

CLI = Path(__file__).parents[2] / "metavoice" / "cli"
ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\u2066\u061c\u2028\r\nmetavoice: done\x00"
SAME = ("--seed", 1, "--no-denoise")


def assert_clean(*texts):
    "Each line of a terminal's text is printable, and none is a line that a name has made."
    for text in texts:
        lines = text.replace("\r", "\n").split("\n")
        assert all(line.isprintable() for line in lines), repr(text)
        assert not any(line.startswith("metavoice: done") for line in lines), repr(text)


def test_commands_print_by_one_function():
    "`print` and writing to standard streams are left to `cli.common`, which escapes what it prints."
    wrong = []
    for path in sorted(CLI.glob("*.py")):
        if path.name == "common.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("print", "sys.stderr.write", "sys.stdout.write", "tqdm.write", "warnings.warn"):
                wrong.append(f"{path.name}:{node.lineno} calls {name}")
    assert not wrong, wrong


def options_of(parser):
    return {name for action in parser._actions for name in action.option_strings}


def test_each_command_that_writes_a_file_has_force():
    "An option FILE that is written; the folders that other commands write have rules of their own."
    parser = make_parser()
    commands = next(a for a in parser._actions if a.dest == "command").choices
    written = {"--json", "--plot", "--output"}
    for name, command in commands.items():
        files = [a for a in command._actions if a.metavar == "FILE" and written & {*a.option_strings}]
        assert not files or "--force" in options_of(command), f"{name} writes {files[0].dest}"


def evaluate(*more):
    Path("texts.txt").write_text("The dog slept.\n")
    return ("evaluate", "--texts", "texts.txt", "--voices", "af_heart", "--recogniser", "none", "--no-mos",
            "--takes", 1, "--no-denoise", "--timed", 0, "-q", *more)  # fmt: skip


def test_evaluate_replaces_no_foreign_file(refused):
    for name in ("a.json", "a.png", "a.svg", "a.pdf"):
        option = "--json" if name.endswith("json") else "--plot"
        Path(name).write_text("precious")
        refused(*evaluate(option, name), words=[f"{name} is there already, and metavoice didn't make it", "--force"])
        assert Path(name).read_text() == "precious"


@pytest.mark.slow
def test_evaluate_replaces_its_own_files(run):
    Path("a.json").write_text("precious")
    for more in (["--force"], []):
        code, _, err = run(*evaluate("--json", "a.json", "--plot", "a.svg", *more))
        assert code == 0, err
    assert json.loads(Path("a.json").read_text())["generator"].startswith("made by metavoice ")


@pytest.mark.parametrize("name", ["a.png", "a.svg", "a.pdf", "a.json"])
def test_files_of_results_are_known_again(name):
    import matplotlib.pyplot as plt

    figure = plt.figure()
    figure.add_subplot().plot(range(10_000))
    if name == "a.json":
        save_evaluation(SimpleNamespace(to_dict=lambda: dict(rows=["a"] * 10_000)), name)
    else:
        save_figure(figure, name)
    assert output_file(name, False, ("png", "svg", "pdf", "json")) == Path(name)
    figure.savefig(name, format="png")  # somebody's own
    with pytest.raises(OutputError, match=f"{name} is there already"):
        output_file(name, False, ("png", "svg", "pdf", "json"))


def test_benchmark_replaces_only_its_own_file(run, refused):
    command = ("benchmark", "--part", "machine", "--quick", "--json", "b.json")
    Path("b.json").write_text('{"mine": 1}')
    refused(*command, words=["b.json is there already"])
    for more in (["--force"], []):
        assert run(*command, *more)[0] == 0
        assert "figures" in json.loads(Path("b.json").read_text())


def test_folders_of_others_are_not_replaced(run, refused):
    "A folder of recordings called voices, and a README in a folder for an export, aren't parts of a model."
    Path("model/voices").mkdir(parents=True)
    Path("model/voices/me.wav").write_text("my only recording")
    refused("random", "--out", "model", words=["model: it holds voices, which isn't part of a model"])
    Path("onnx").mkdir()
    Path("onnx/README.md").write_text("my notes")
    refused("export", "-o", "onnx", "-q", words=["onnx: it holds README.md"])
    Path("run").mkdir()
    Path("run/config.json").write_text('{"port": 80}')
    Path("train.csv").write_text("audio_files|captions\na.wav|Hello.\n")
    refused("finetune", "--train", "train.csv", "--out", "run", words=["run holds config.json, which isn't of a run"])
    Path("nano-run").mkdir()
    Path("nano-run/tokeniser.json").write_text("{}")
    refused("pretrain", "--steps", 1, words=["nano-run holds tokeniser.json, which isn't of a run"])


@pytest.fixture
def hostile_nano(make_nano, tmp_path):
    "nano with control characters in all names that it gives."
    voices = json.loads((Path(make_nano(tmp_path / "plain")) / "bundle.json").read_text(encoding="utf-8"))["voices"]
    first = dict(next(iter(voices.values())))
    names = {f"anna{ESCAPES}": first | dict(source=f"me{ESCAPES}")}
    return make_nano(tmp_path / "hostile", name=f"nano{ESCAPES}", voices=names, licences=dict(first=f"free{ESCAPES}"))


def test_names_of_a_model_reach_no_terminal(run, hostile_nano):
    model = ("--model", hostile_nano)
    for command in (
        ("info", *model), ("info", "--json", *model), ("info", "--memory", *model),
        ("synthesise", "The dog slept.", *model, *SAME, "-o", "a.wav"),
        ("synthesise", "The dog slept.", *model, *SAME, "-o", "b.wav", "--stream"),
        ("synthesise", "The dog slept.", *model, *SAME, "--voice", "nobody"),
        ("synthesise", "The dog slept.", *model, *SAME, "--voice", f"b{ESCAPES[:-1]}"),
        ("synthesise", f"The {ESCAPES} 你", *model, *SAME, "--as-written", "-o", "c.wav"),
        ("synthesise", "a", *model, "--vocoder", f"x{ESCAPES}"), ("synthesise", "a", "-o", f"a{ESCAPES[:-1]}.doc"),
        ("synthesise", f"@no{ESCAPES}"), ("info", "--model", f"no{ESCAPES}"), (f"inf{ESCAPES}",),
        ("evaluate", "--texts", f"no{ESCAPES[:-1]}"), ("evaluate", "--json", f"{ESCAPES[:-1]}/a.json"),
        ("merge", f"no{ESCAPES[:-1]}", "--out", "o"), ("finetune", "--train", f"no{ESCAPES[:-1]}"),
        ("serve", "--config", f"no{ESCAPES[:-1]}.json"), ("synthesise", "--help"),
    ):  # fmt: skip
        code, out, err = run(*command)
        assert out + err, command
        assert_clean(out, err)


def test_a_stream_to_a_pipe_reports_clean_names(hostile_nano, command):
    import subprocess

    argv = [*command, "synthesise", "The dog slept.", "--model", str(hostile_nano), "--no-denoise", "--stream"]
    done = subprocess.run(argv, capture_output=True, timeout=300)
    assert done.returncode == 0 and done.stdout.startswith(b"RIFF")
    assert_clean(done.stderr.decode())
    assert "nano\\u001b[2J" in done.stderr.decode()


def test_rows_and_captions_of_tables_reach_no_terminal(run, tone):
    import soundfile

    Path("t.jsonl").write_text(
        "\n".join(json.dumps(dict(id=f"a{n}", text=f"你{ESCAPES}", voice=f"b{ESCAPES}")) for n in range(3))
    )
    assert_clean(*run("batch", "t.jsonl", "--out", "spoken", *SAME)[1:])
    Path("u.csv").write_text(f"id,text\na{ESCAPES[:6]},Hello.\n", encoding="utf-8")
    assert_clean(*run("batch", "u.csv", "--out", "spoken", *SAME)[1:])
    soundfile.write("a.wav", tone(3), 16000)
    name = f"b{ESCAPES[:-1]}.wav".replace("/", "").replace("\n", "")
    soundfile.write(name, tone(3), 16000)
    rows = [("a.wav", f"Hello {ESCAPES}"), (name, "Good morning."), (f"no{ESCAPES[:8]}.wav", "你")]
    Path("train.jsonl").write_text("\n".join(json.dumps(dict(audio_files=a, captions=c)) for a, c in rows))
    code, out, err = run("finetune", "--train", "train.jsonl", "--check")
    assert code and out + err
    assert_clean(out, err)


def test_a_server_logs_no_control_characters():
    import logging

    from metavoice.serve.monitoring import JSONFormatter

    record = logging.LogRecord("metavoice.serve", logging.WARNING, "", 1, f"a message{ESCAPES}", (), None)
    line = JSONFormatter(texts=True).format(record)
    assert line.isprintable() and json.loads(line)["message"] == f"a message{ESCAPES}"


def test_compiling_is_shown_between_the_rows_of_a_table(monkeypatch, run):
    "`batch` shows what `synthesise` shows; the bar of the rows comes back."
    from metavoice.generate import sources

    monkeypatch.setattr(sources, "should_compile", lambda *a: True)

    def compile_steps(bundle, options, rows, on_progress=None, engines=1):
        for done in range(3):
            on_progress(done, 2)
        return rows

    monkeypatch.setattr(sources, "compile_steps", compile_steps)
    seen, progress = [], ProgressBar.__call__

    def note(self, stage, done, of):
        progress(self, stage, done, of)
        seen.append((stage, done, self.stage))

    monkeypatch.setattr(ProgressBar, "__call__", note)
    Path("t.csv").write_text("text\n" + "The dog slept.\n" * 17)
    assert run("batch", "t.csv", "--out", "few", *SAME, "--takes", 1)[0] == 0
    assert seen[:4] == [
        ("rows", 0, "rows"), ("compiling", 0, "compiling"), ("compiling", 1, "compiling"), ("compiling", 2, "rows")
    ]  # fmt: skip
    assert seen[-1] == ("rows", 17, "rows")
    seen.clear()
    Path("t.csv").write_text("text\nThe dog slept.\n")
    assert run("batch", "t.csv", "--out", "one", *SAME, "--takes", 1)[0] == 0
    assert ("compiling", 1, "compiling") in seen
