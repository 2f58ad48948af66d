"""The command line: one file a group of verbs."""


def main() -> None:
    """Run the command line, `promptkd`."""
    from pd_core.cli import verbs

    verbs.main()
