"""Trials of a search in a database of the project, by Optuna's TPE sampler.

Trial n of a search depends only on the seed and the trials before it, so a search that was killed
and is started again has the same trials as one that was not. A trial whose process has ended is
marked as failed and does not count.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from pd_core.core.atomic import check_space
from pd_core.core.errors import NoSpace, PdError
from pd_core.mlops.tracking.nesting import is_running, this_process
from pd_core.pipeline.stages.space import Dimension

if TYPE_CHECKING:
    import optuna

_STARTUP = 8  # trials at random before the sampler has a model
_REDUCTION = 4  # the best quarter goes on at a rung, as in the experiments of the paper below
_SPACE = 8 * 2**20  # bytes; a database of a thousand trials takes less
_BUSY_SECONDS = 60.0

INITIAL = 1
"""Number of the trial with the values that `params.yaml` had when the search began."""

NUMBER, VALUES, PROCESS = "number", "values", "process"
SECONDS, REASON, CURVE = "cpu_seconds", "reason", "curve"
"""Attributes of a trial."""


@dataclass(frozen=True)
class Trial:
    """A trial that has ended.

    Attributes:
        number: from 1; one that replaces a killed trial has its number.
        values: of the searched parameters.
        value: the objective; None if it was pruned.
        rungs: the objective at the rungs that it reached.
        cpu_seconds: that it took.
        started, ended: milliseconds since 1970.
        reason: why it has no model, if it has none.
    """

    number: int
    values: dict[str, Any]
    value: float | None
    rungs: dict[int, float]
    cpu_seconds: float
    started: int
    ended: int
    reason: str = ""
    curve: tuple[dict[str, float], ...] = ()  # metrics of each epoch


@dataclass(frozen=True)
class Repeat:
    """Result of a candidate's training with another seed."""

    value: float  # the objective; 0 if there is no usable model
    cpu_seconds: float


def study_name(stage: str, key: Mapping[str, object]) -> str:
    """Return the name of a search from all that determines its trials."""
    text = json.dumps(key, sort_keys=True, default=str)
    return f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class Study:
    """A search's trials; several processes may add to them at the same time."""

    def __init__(self, file: Path, name: str, *, seed: int) -> None:
        """Open or create a search.

        Args:
            file: the database.
            name: of the search, see `study_name`.
            seed: of the sampler.

        Raises:
            NoSpace: the disk is full.
            PdError: the database cannot be used.
        """
        self.name, self._file, self._seed = name, file, seed
        self._lock = FileLock(f"{file}.lock")
        with self._access():
            check_space(file.parent, _SPACE, "the search")
            self._study = _open(file, name)

    def ask(
        self, space: Mapping[str, Dimension], current: Mapping[str, Any], limit: int
    ) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """Begin the next trial; the first one has the current values.

        Args:
            space: of the search.
            current: values in `params.yaml`.
            limit: number of trials in all.

        Returns:
            The trial and the values of its parameters; None if there are as many.
        """
        with self._access():
            self._end_dead()
            taken = {trial.user_attrs[NUMBER] for trial in self._counted()}
            if len(taken) >= limit:
                return None
            # The number of a killed trial is free again, though later trials may have ended.
            number = next(each for each in count(1) if each not in taken)
            fixed = current if number == INITIAL else None
            self._study.sampler = _sampler(self._seed + number - 1, fixed, space)
            trial = self._study.ask(_distributions(space))
            values = dict(current) if number == INITIAL else _values(trial.params, space)
            for key, content in {NUMBER: number, VALUES: values, PROCESS: this_process()}.items():
                trial.set_user_attr(key, content)
            return trial, values

    def is_promising(self, trial: optuna.Trial, rung: int, value: float) -> bool:
        """Record the objective at a rung; return True if the trial should go on.

        This is asynchronous successive halving (Li et al., MLSys 2020). Optuna's pruner for it also
        counts killed trials, with which a search that was resumed would prune others.
        """
        with self._access():
            trial.report(value, rung)
            reached = [each.intermediate_values.get(rung) for each in self._counted()]
        others = [other for other in reached if other is not None]  # with this one
        return sum(other > value for other in others) < ceil(len(others) / _REDUCTION)

    def tell(self, trial: optuna.Trial, value: float | None, **attributes: Any) -> None:
        """End a trial; one without a value was pruned. The attributes are stored with it."""
        from optuna.trial import TrialState

        with self._access():
            for key, content in attributes.items():
                trial.set_user_attr(key, content)
            state = TrialState.PRUNED if value is None else TrialState.COMPLETE
            self._study.tell(trial, value, state=state)

    def drop(self, trial: optuna.Trial) -> None:
        """Mark a trial that was interrupted as failed, so that it does not count."""
        from optuna.trial import TrialState

        with self._access():
            self._study.tell(trial, state=TrialState.FAIL)

    def trials(self) -> list[Trial]:
        """Return the trials that have ended."""
        from optuna.trial import TrialState

        with self._access():
            counted = self._counted()
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        trials = [_ended(trial) for trial in counted if trial.state in ended]
        return sorted(trials, key=lambda trial: trial.number)

    def repeated(self, number: int, seed: int) -> Repeat | None:
        """Return the result of a trial's values with another seed, if there is one."""
        with self._access():
            found = self._study.user_attrs.get(f"trial {number}, seed {seed}")
        return None if found is None else Repeat(**found)

    def keep(self, number: int, seed: int, repeat: Repeat) -> None:
        """Store the result of a trial's values with another seed."""
        with self._access():
            self._study.set_user_attr(f"trial {number}, seed {seed}", asdict(repeat))

    def _counted(self) -> list[optuna.trial.FrozenTrial]:
        """Return all trials that were not killed."""
        from optuna.trial import TrialState

        trials = self._study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.state is not TrialState.FAIL]

    def _end_dead(self) -> None:
        """Mark the trials whose process has ended as failed."""
        from optuna.trial import TrialState

        for trial in self._counted():
            running = trial.state is TrialState.RUNNING
            if running and not is_running(trial.user_attrs.get(PROCESS, "")):
                self._study.tell(trial.number, state=TrialState.FAIL)

    @contextmanager
    def _access(self) -> Iterator[None]:
        """Use the database alone; turn its errors into those of one line."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                yield
        except (StorageInternalError, SQLAlchemyError, OSError) as error:
            reason = str(error.__cause__ or error).partition("\n")[0]
            if "disk is full" in reason or "No space" in reason:
                raise NoSpace(
                    f"cannot write '{self._file}': the disk is full; make room and start the same"
                    " command again, the trials that have ended are kept"
                ) from None
            raise PdError(
                f"cannot use '{self._file}' ({reason}); make its folder writable, or remove the"
                " file to search anew"
            ) from None


def _open(file: Path, name: str) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": _BUSY_SECONDS}}
    )
    return optuna.create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=True
    )


def _sampler(
    seed: int, fixed: Mapping[str, Any] | None, space: Mapping[str, Dimension]
) -> optuna.samplers.BaseSampler:
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=_STARTUP, multivariate=True, constant_liar=True
        )
        if fixed is None:
            return sampler
        nearest = {key: _nearest(fixed[key], dimension) for key, dimension in space.items()}
        given = {key: value for key, value in nearest.items() if value is not None}
        return optuna.samplers.PartialFixedSampler(given, sampler)


def _distributions(
    space: Mapping[str, Dimension],
) -> dict[str, optuna.distributions.BaseDistribution]:
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    def distribution(dimension: Dimension) -> BaseDistribution:
        low, high = dimension.low, dimension.high
        if dimension.choices is not None:
            return CategoricalDistribution([json.dumps(choice) for choice in dimension.choices])
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=dimension.log)
        assert low is not None
        assert high is not None
        return FloatDistribution(low, high, log=dimension.log)

    return {key: distribution(dimension) for key, dimension in space.items()}


def _nearest(value: Any, dimension: Dimension) -> Any:
    """Return the value of a dimension that is nearest to a current one; None if there is none."""
    if value is None:
        return None
    if dimension.choices is not None:
        text = json.dumps(value)
        return text if text in [json.dumps(choice) for choice in dimension.choices] else None
    return min(max(value, dimension.low), dimension.high)


def _values(params: Mapping[str, Any], space: Mapping[str, Dimension]) -> dict[str, Any]:
    """Return values as they go into `params.yaml`: three digits are enough."""

    def value(key: str) -> Any:
        if space[key].choices is not None:
            return json.loads(params[key])
        return float(f"{params[key]:.3g}") if isinstance(params[key], float) else params[key]

    return {key: value(key) for key in space}


def _ended(trial: optuna.trial.FrozenTrial) -> Trial:
    from optuna.trial import TrialState

    attributes = trial.user_attrs
    start, end = trial.datetime_start, trial.datetime_complete
    assert start is not None
    assert end is not None
    return Trial(
        attributes[NUMBER],
        attributes[VALUES],
        trial.value if trial.state is TrialState.COMPLETE else None,
        dict(trial.intermediate_values),
        attributes.get(SECONDS, 0.0),
        round(1000 * start.timestamp()),
        round(1000 * end.timestamp()),
        attributes.get(REASON, ""),
        tuple(attributes.get(CURVE, ())),
    )
