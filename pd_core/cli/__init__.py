"""Command line `promptkd`: one module per group of commands."""


def main() -> None:
    """Run `promptkd`."""
    from pd_core.cli import verbs

    verbs.main()
