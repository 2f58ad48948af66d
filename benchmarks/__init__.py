"""Benchmarks: steps of training and inference beside a plain path, and load tests of the server.

`python -m benchmarks` writes reports/bench (`make bench`), `python -m benchmarks.load`
reports/serving (`make load`). Both run from the project's root.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Tiny models and training steps are shared with the tests.
sys.path.append(str(ROOT / "tests" / "support"))
