"""How busy the machine is, as MLflow measures it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BUSY = "system/cpu_utilization_percentage"


class Machine:
    """Samples of processor, memory and, where there is one, GPU.

    MLflow's own collector of these has a thread and a connection of its own; its parts are used
    here, so that there is one thread a stage, and one place where a failing store is dealt with.
    """

    def __init__(self) -> None:
        """Find out what there is to measure."""
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

        processor: Callable[[], Any] = CPUMonitor  # published without types
        self._monitors = [processor(), *_gpus()]
        self.samples = 0
        self._read()  # the use of the processor counts from the reading before

    def sample(self) -> dict[str, float]:
        """Return the numbers now, by the names under which MLflow's page shows them."""
        self.samples += 1
        return {f"system/{name}": value for name, value in self._read().items()}

    def _read(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found.update(monitor.aggregate_metrics())
            monitor.clear_metrics()
        return found


def _gpus() -> list[Any]:
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    gpus: Callable[[], Any] = GPUMonitor
    try:
        return [gpus()]
    except Exception:  # noqa: BLE001 no GPU, or not the package that reads it
        return []
