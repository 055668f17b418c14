"Metrics, and a log without the texts of users."

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import logging, sys
from metavoice.cli.common import silence_libraries
from metavoice.serve.monitoring import configure_logging
with silence_libraries():
    configure_logging(sys.stderr)
    for name in ("metavoice.generate.codes", "python_multipart", "other"):
        logging.getLogger(name).warning("%r did not end", "my secret")
    try:
        raise ValueError("my secret")
    except ValueError:
        logging.getLogger("metavoice.serve.scheduler").exception("speech generation failed")
"""


def test_no_handler_quotes_texts():
    environment = os.environ | dict(PYTHONPATH=str(ROOT))
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert "secret" not in run.stderr + run.stdout
    loggers = [json.loads(line)["logger"] for line in run.stderr.splitlines()]
    assert loggers == ["metavoice.generate.codes", "python_multipart", "other", "metavoice.serve.scheduler"]


def test_health_and_metrics(http):
    assert http.get("/health").json()["status"] == "ok"
    assert http.get("/health/live").status_code == http.get("/health/ready").status_code == 200
    http.speak()
    text = http.get("/metrics").text
    for name in (
        'metavoice_requests_total{route="/v1/audio/speech",status="200"}',
        "metavoice_batch_rows_bucket",
        "metavoice_audio_seconds_total",
        "metavoice_first_byte_seconds_count",
        "process_resident_memory_bytes",
    ):
        assert name in text, name
    http.get("/some/path/of/a/stranger")
    assert "stranger" not in http.get("/metrics").text
