"""Interrupts: the first waits, the second does not, and afterwards all is as it was."""

import signal
import threading

import pytest

from k2lab.train.patience import patient


def test_the_first_interrupt_is_told_and_the_second_raised() -> None:
    before = signal.getsignal(signal.SIGINT)
    with patient() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_hear_of_none() -> None:
    before, told = signal.getsignal(signal.SIGINT), list[bool]()

    def work() -> None:
        with patient() as interrupted:
            told.append(interrupted())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told == [False] and signal.getsignal(signal.SIGINT) is before
