"""Two states of the project beside each other: git revisions, MLflow runs or model versions.

Nothing is computed anew: what is compared is what stages wrote and what runs recorded.
"""

from pd_core.reporting.comparison.differences import Comparison, compare
from pd_core.reporting.comparison.sides import Side
from pd_core.reporting.comparison.sources import find_side

__all__ = ["Comparison", "Side", "compare", "find_side"]
