"""Signals that end a run, as an exception: what is under way is given up cleanly.

SIGTERM (as Slurm sends before a time limit), SIGHUP and SIGINT raise `Interrupted` in the main
thread, once: others that follow do not disturb what it clears away. Not within `held`: HDF5 cannot
be left in the middle of a call.
"""

import contextlib
import signal
import threading

NUMBERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """A signal ends the run. number: which."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.number = number


class _State:
    """What came, whether it was raised, and how deep the main thread is in `held`."""

    number, raised, depth = None, False, 0


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _come(number, frame):
    if _State.number is None:
        _State.number = number
        if not _State.depth:
            check()


def check():
    """Raise Interrupted where a signal came: in the main thread once, in others always."""
    if _State.number is None:
        return
    if _in_main_thread():
        if _State.raised:
            return
        _State.raised = True
    raise Interrupted(_State.number)


@contextlib.contextmanager
def raised():
    """Signals raise Interrupted while the block lasts. Those that are ignored (nohup) stay so."""
    if not _in_main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in NUMBERS}
    former = {number: one for number, one in former.items() if one is not signal.SIG_IGN}
    _State.number, _State.raised, _State.depth = None, False, 0
    for number in former:
        signal.signal(number, _come)
    try:
        yield
    finally:
        for number, one in former.items():
            signal.signal(number, one)
        _State.number = None


@contextlib.contextmanager
def held():
    """In the main thread: a signal that comes in the block is raised at its end, or by `check`."""
    with quiet():
        yield
    if _in_main_thread():
        check()


@contextlib.contextmanager
def quiet():
    """A signal that comes in the block is raised later, by `check`."""
    here = _in_main_thread()
    _State.depth += here
    try:
        yield
    finally:
        _State.depth -= here
