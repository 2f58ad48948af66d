"""Fork server: stages start as forks of one process that has imported what they need.

Importing torch and MLflow takes longer than many a stage. The command that DVC starts hands its
arguments, environment and standard streams to a fork of the server, forwards signals to it, and
exits with its status. Where there is no server, the command runs in its own process.

    command  --- socket --->  keeper (fork of the server)  --- fork --->  worker
"""

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pd_core.pipeline.settings import Settings

ADDRESS = "PROMPTKD_FORK_SERVER"
"""Variable with the path of the server's socket."""

_STAGES = {"prepare", "teacher", "class-vectors", "student", "evaluate", "tuned-student", "report"}
_MODULES = (
    "pd_core.cli.verbs", "pd_core.data.catalog.prepare", "pd_core.training.teacher.stage",
    "pd_core.training.student.stage", "pd_core.evaluation.evaluate",
    "pd_core.mlops.tracking.recorder", "pd_core.mlops.registry.register",
    "pd_core.reporting.page_dataset", "open_clip", "matplotlib.figure", "scipy.stats",
    "mlflow", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store",
    "sqlalchemy.dialects.sqlite",
    "onnxscript.function_libs.torch_lib.ops", "torch.export._trace",
    "torch.onnx._internal.exporter._core",
)  # fmt: skip
_STREAMS = (0, 1, 2)
_STARTED = b"+"


def for_profile(settings: "Settings") -> AbstractContextManager[None]:
    """Return a server for the profile in the current folder, or nothing if it uses a GPU.

    A process that has initialised CUDA cannot be forked.
    """
    from pd_core.core.errors import PdError
    from pd_core.pipeline.stages.params import PARAMS, load_params

    try:
        run = load_params(PARAMS).run
    except PdError:  # the stages report it
        return nullcontext()
    return running(run.threads) if (settings.device or run.device) == "cpu" else nullcontext()


@contextmanager
def running(threads: int) -> Iterator[None]:
    """Let stages that are started in this block run in forks of one server, for Linux and CPUs.

    The server imports the packages when the first stage is started, and ends with the block, or
    with this process. A block within such a block uses the same server.

    Args:
        threads: of the numeric libraries, which read it when they are imported.
    """
    if ADDRESS in os.environ or sys.platform != "linux":
        yield
        return
    with (
        TemporaryDirectory(prefix="promptkd-") as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        address = str(Path(folder) / "stages")
        listener.bind(address)
        listener.listen()
        lifeline, end = os.pipe()
        descriptors = [listener.fileno(), lifeline]
        arguments = [str(number) for number in (*descriptors, threads)]
        subprocess.run(
            [sys.executable, "-m", "pd_core.cli.fork_server", *arguments],
            check=True, pass_fds=descriptors, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(lifeline)
        os.environ[ADDRESS] = address
        try:
            yield
        finally:
            del os.environ[ADDRESS]
            os.close(end)


def delegate(arguments: Sequence[str]) -> None:
    """Run a stage in a fork of the server and exit with its status; return if there is no server.

    Args:
        arguments: of the command line, without the program.
    """
    address = os.environ.get(ADDRESS)
    if address is None or not _STAGES.intersection(arguments[:1]):
        return
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
            status = _status_of(connection, arguments)
        except OSError:  # the server has ended
            return
    if status is None:
        return
    if status < 0:
        with suppress(OSError):  # some signals have no handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    raise SystemExit(status)


def _status_of(connection: socket.socket, arguments: Sequence[str]) -> int | None:
    """Return the exit status of a stage, negative after a signal; None if it was not started."""
    request = {"arguments": arguments, "folder": str(Path.cwd()), "environment": {**os.environ}}
    socket.send_fds(connection, [_STARTED], _STREAMS)
    connection.sendall(json.dumps(request).encode() + b"\n")
    # Of a terminal, the worker gets an interrupt of its own.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminate = signal.signal(signal.SIGTERM, lambda *_: connection.sendall(b"\n"))
    with connection.makefile("rb") as answer:
        started, status = answer.read(1), answer.read()
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, terminate)
    return int(status or -signal.SIGKILL) if started else None


def _serve(listener: socket.socket, lifeline: int, threads: int) -> Sequence[str]:
    """Serve until the lifeline is closed; return, in each worker, the arguments of its command."""
    _detach()
    loaded, keepers = False, set[int]()
    while True:
        ready, _, _ = select.select([listener.fileno(), lifeline], [], [])
        if lifeline in ready:
            os._exit(0)
        if not loaded:
            _load(threads)
            loaded = True
        connection, _ = listener.accept()
        keeper = os.fork()
        if keeper == 0:
            listener.close()
            os.close(lifeline)
            return _keep(connection)
        connection.close()
        keepers.add(keeper)
        keepers -= {each for each in keepers if os.waitpid(each, os.WNOHANG)[0]}


def _detach() -> None:
    """Leave the tree of processes: those who end it are to reach the commands, not their forks."""
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _load(threads: int) -> None:
    """Import what stages need; nothing may start a thread, which a fork would not have."""
    from pd_core.pipeline import code_hash
    from pd_core.pipeline.settings import compute_with, telemetry_off

    telemetry_off()
    compute_with(threads)
    for module in _MODULES:
        import_module(module)
    from pd_core.mlops.registry.register import look_up_packages

    for room in code_hash.ROOMS:
        code_hash.listing(room)
    look_up_packages()
    gc.collect()
    gc.freeze()  # otherwise the collector would copy these pages in every fork


def _keep(connection: socket.socket) -> Sequence[str]:
    """Start a worker, forward signals to it, report its status; return in the worker only."""
    _, descriptors, _, _ = socket.recv_fds(connection, 1, len(_STREAMS))
    received = connection.makefile("rb")
    request = json.loads(received.readline())
    worker = os.fork()
    if worker == 0:
        connection.close()
        _take_over(descriptors, request["folder"], request["environment"])
        arguments: list[str] = request["arguments"]
        return arguments
    for descriptor in descriptors:
        os.close(descriptor)
    connection.sendall(_STARTED)
    threading.Thread(target=_forward, args=(received, worker), daemon=True).start()
    _, status = os.waitpid(worker, 0)
    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _forward(received: BinaryIO, worker: int) -> None:
    """Terminate a worker at each byte that its command sends, and kill it once that has ended."""
    while received.read(1):
        os.kill(worker, signal.SIGTERM)
    os.kill(worker, signal.SIGKILL)


def _take_over(descriptors: Sequence[int], folder: str, environment: dict[str, str]) -> None:
    """Give this process the standard streams, folder and environment of a command."""
    for stream, descriptor in zip(_STREAMS, descriptors, strict=True):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    del os.environ[ADDRESS]  # a training of several processes starts them itself


if __name__ == "__main__":
    listening, end_of_parent, number_of_threads = map(int, sys.argv[1:])
    given = _serve(socket.socket(fileno=listening), end_of_parent, number_of_threads)
    from pd_core.cli.verbs import main

    sys.argv = ["promptkd", *given]
    main()
