"""Search space of `promptkd tune`: ranges of the parameters of teacher and student.

No stage reads it. A file without the block `search` has the default space, that of
`paper/params.yaml`, which names the source of each range.
"""

from typing import Any, Self

from pydantic import model_validator

from pd_core.core.config import Config


class Dimension(Config):
    """Range or list of values of one parameter."""

    low: int | float | None = None  # whole numbers if both bounds are whole
    high: int | float | None = None
    log: bool = False  # draw the logarithm uniformly
    choices: tuple[Any, ...] | None = None

    @model_validator(mode="after")
    def _is_range_or_list(self) -> Self:
        if self.choices is not None:
            if len(self.choices) < 2 or self.low is not None or self.high is not None:
                raise ValueError("give two or more choices and no bounds, or low and high")
        elif self.low is None or self.high is None or not self.low < self.high:
            raise ValueError("give low and high, low < high, or choices")
        elif self.log and self.low <= 0:
            raise ValueError("give low > 0 where log is true")
        return self

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The bounds, or all choices."""
        return (self.low, self.high) if self.choices is None else self.choices


class SearchParams(Config):
    """Dimensions by parameter, of each stage that can be tuned."""

    teacher: dict[str, Dimension]
    student: dict[str, Dimension]


_CROPS = ([0.08, 1.0], [0.5, 1.0], [0.85, 1.0])

DEFAULT_SPACE = SearchParams(
    teacher={
        "lr": Dimension(low=0.0005, high=0.02, log=True),
        "epochs": Dimension(low=10, high=30),
        "text_loss_weight": Dimension(low=5.0, high=50.0, log=True),
        "image_loss_weight": Dimension(low=1.0, high=20.0, log=True),
        "gpa_mean": Dimension(low=5, high=25),
        "crop_scale": Dimension(choices=_CROPS),
    },
    student={
        "lr": Dimension(low=0.0005, high=0.02, log=True),
        "kd_weight": Dimension(low=100, high=3000, log=True),
        "epochs": Dimension(low=10, high=40),
        "temperature": Dimension(low=0.5, high=4.0, log=True),
        "crop_scale": Dimension(choices=_CROPS),
        "image_depth": Dimension(low=3, high=12),
    },
)
