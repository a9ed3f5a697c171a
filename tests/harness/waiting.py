# SPDX-License-Identifier: Apache-2.0
"""Waiting for a condition with a deadline: the only way in which these tests wait."""
import threading
import time

STEP_S = 0.02


class TooLate(AssertionError):
    """The condition did not become true in time."""


def wait_for(condition, what, deadline_s=30.0, step_s=STEP_S):
    """Returns condition()'s first true value; fails with `what` and the last value seen after `deadline_s`."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TooLate(f"waited {deadline_s:.0f} s for {what}; last seen: {value!r}")
        pause.wait(step_s)


def measure_for(seconds):
    """Lets time pass because the passing time is what is measured (CPU use of an idle daemon)."""
    threading.Event().wait(seconds)
