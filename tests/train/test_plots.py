"Plots of training logs."
from metavoice.train.plots import LivePlot, plot_losses, read_lines


def test_plot_losses_and_live_plot():
    lines = []
    for step in range(1, 9):
        lines.append(dict(step=step, loss=3 / step) | (dict(held_out_audio=4 / step) if step % 2 else {}))
    assert len(plot_losses(lines).axes[0].lines) == 2 and plot_losses([])
    assert plot_losses(lines)._repr_png_().startswith(b"\x89PNG")
    LivePlot()(lines[0])


def test_a_log_that_is_being_written(tmp_path):
    path = tmp_path / "log.jsonl"
    for end in ("", '{"step": 2, "lo', "\0" * 100):
        path.write_text('{"step": 1, "loss": NaN}\n' + end)
        assert [line["step"] for line in read_lines(path)] == [1]
