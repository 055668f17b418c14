"""Run notebooks, each in a forked child of one process that has imported the slow libraries.

Reads lines of JSON `[notebook, cache folder, log file]` from standard input and prints the exit code of each."""
import json
import os
import sys
import traceback

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot  # noqa: E402, F401
import torch  # noqa: E402, F401
import transformers  # noqa: E402, F401
from nbdev.test import nbdev_test  # noqa: E402


def run_in_child(notebook, cache, log):
    "Run the cells of a notebook with the output in a log file; exits with 1 if a cell fails."
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # standard input is the list of notebooks
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["METAVOICE_CACHE"] = cache
    code = 1
    try:
        nbdev_test(path=notebook, n_workers=0)
        code = 0
    except SystemExit as e:
        code = int(bool(e.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run_in_child(*json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
