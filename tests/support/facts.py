"""Facts that the project's numbers are compared with: of the paper and the public data sets."""

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def facts(name: str) -> Any:
    """Return the content of a file in `tests/reference`."""
    return json.loads((Path(__file__).parents[1] / "reference" / f"{name}.json").read_text())
