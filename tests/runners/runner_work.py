"""What the workers of the tests do: imported by them, so it lies in a module of its own, without torch."""

import os
import signal
import sys
import time
from pathlib import Path

from robustdup.errors import Unavailable, UserError
from robustdup.runners import tell


def squares(place):
    return lambda number: number * number


def tells(place):
    """Tell half of each payload, then a note that cannot be read, then answer."""

    def work(number):
        tell(number / 2)
        tell(Unloadable())
        return number * number

    return work


def log_squares(path, place):
    """Append each payload to a file; later ones are done earlier."""

    def work(number):
        time.sleep(0.02 * (5 - number % 5))
        with open(path, "a") as file:
            file.write(f"{number}\n")
        return number * number

    return work


def log_setups(path, place):
    with open(path, "a") as file:
        file.write(f"{place.number} {os.getpid()}\n")
    return squares(place)


def where(place):
    def work(_):
        time.sleep(0.05)
        affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        return place, os.getpid(), affinity, os.environ.get("OMP_NUM_THREADS"), os.environ.get("MKL_NUM_THREADS")

    return work


def torch_threads(_, place):
    """What is bound to the first argument brings torch with it."""
    torch = sys.modules["torch"]

    return lambda _: torch.get_num_threads()


def refuse(place):
    def work(kind):
        if kind == "user":
            raise UserError("eps must be positive, got -1.", code="bad-eps")
        if kind == "unavailable":
            raise Unavailable("no such thing here")
        if kind == "exit":
            sys.exit(4)
        if kind == "lambda":
            return lambda: 0
        if kind != "good":
            raise ValueError("what a stranger's code says")
        return kind

    return work


def no_setup(kind, path, place):
    with open(path, "a") as file:
        file.write(f"{place.number}\n")
    if kind == "user":
        raise UserError("There is no model 'x'.")
    if kind == "exit":
        os._exit(3)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("a broken checkpoint")


def dies_once(folder, place):
    """Payload 3 ends its worker the first time, payload 5 the first two times."""

    def work(number):
        for attempt in range({3: 1, 5: 2}.get(number, 0)):
            mark = Path(folder) / f"{number}-{attempt}"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return number * number

    return work


def comes_back_late(folder, place):
    """The first worker that is given payload 2 dies of it, and no worker that starts after that is ready soon."""
    mark = Path(folder) / "died"
    if mark.exists():
        time.sleep(300)
    (Path(folder) / "setups").mkdir(exist_ok=True)
    (Path(folder) / "setups" / str(place.number)).touch()

    def work(number):
        if number == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return number

    return work


def always_dies(place):
    def work(number):
        if number == 2:
            os._exit(7)
        return number

    return work


def sleeps(path, place):
    def work(number):
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(number)
        return number

    return work


class Unloadable:
    """Can be pickled, cannot be loaded."""

    def __reduce__(self):
        return int, ("not a number",)


def alive(pid):
    """Whether a process runs; a zombie that waits to be collected does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    try:
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)
