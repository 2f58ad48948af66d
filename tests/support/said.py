"""What a command has said on stderr."""

import re

_COUNT = re.compile(r"[\w ]+: \d+/\d+ \w+ ")  # `teacher embedded_greek: 1/40 steps `


def lines_but_counts(stderr: str) -> list[str]:
    """Return the lines that do not say how far a stage is."""
    return [line for line in stderr.splitlines() if not _COUNT.match(line)]
