"The `metavoice` command."


def main(argv=None):
    "Run a command, as `metavoice` does at a shell, and return its exit code."
    from .commands import main as run_command  # here, as `import metavoice.cli` loads nothing

    return run_command(argv)
