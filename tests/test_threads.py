"""Threads that wait sleep where others want the cores, spin where not, and do what the user said."""

import os
import subprocess
import sys

import pytest

from nystromformer import threads
from nystromformer.threads import CALM, CALM_READINGS, CROWDED, Decision

needs_linux = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="Linux counts threads' waiting")


def test_crowded_at_once_and_calm_after_a_while():
    decision = Decision()
    assert not any(decision.crowded(share) for share in (0.0, CALM, CROWDED))
    assert decision.crowded(2 * CROWDED)
    between = (CALM + CROWDED) / 2
    calm = [0.0] * (CALM_READINGS - 1)
    assert all(decision.crowded(share) for share in [*calm, between, *calm])
    assert not decision.crowded(0.0)
    assert not decision.crowded(between)
    assert decision.crowded(2 * CROWDED)


@needs_linux
def test_pressure_is_the_time_without_a_core():
    """Two processes that never pause, on the one core of this thread's."""
    core = min(os.sched_getaffinity(0))
    program = f"""
import os, time
from nystromformer.threads import CorePressure
os.sched_setaffinity(0, {{{core}}})
pressure, end = CorePressure(), time.monotonic() + 1
while time.monotonic() < end: pass
print(pressure.read())
"""
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    shares = [float(process.communicate(timeout=60)[0]) for process in running]
    assert max(shares) > CROWDED  # those that did not run alone
    assert max(shares) < 1.1


@pytest.mark.parametrize("name", threads.CHOSEN_BY_THE_USER)
def test_what_the_user_set_stays(name, monkeypatch):
    monkeypatch.setattr(threads.threading, "Thread", lambda **_: pytest.fail("watches"))
    threads.watch_for_other_work({name: "passive"})


@needs_linux
def test_one_watch_a_process(monkeypatch):
    started = []

    class Thread:
        def __init__(self, **named):
            started.append(named)

        def start(self):
            pass

    monkeypatch.setattr(threads, "_watching", threads.threading.Lock())
    monkeypatch.setattr(threads.threading, "Thread", Thread)
    threads.watch_for_other_work({})
    threads.watch_for_other_work({})
    assert len(started) == 1


@needs_linux
def test_a_command_among_busy_processes_has_more_threads_than_cores():
    """The command computes; processes that never pause want its cores; its OpenMP threads become more."""
    program = """
import os, sys, threading, time
from nystromformer import cli
def compute(settings):
    import torch
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    x, end = torch.ones(1 << 20), time.monotonic() + 60
    while time.monotonic() < end and "idle OpenMP" not in {t.name for t in threading.enumerate()}:
        x.mul_(1.0)
    time.sleep(0.2)
    print(len(os.listdir("/proc/self/task")) > 2 * len(os.sched_getaffinity(0)))
cli.COMMANDS["convert"] = cli.Command("", "__main__:compute", ())
sys.exit(cli.main(["convert", "source=a", "target=b"]))
"""
    cores = sorted(os.sched_getaffinity(0))[:2]
    others = [
        subprocess.Popen(
            [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"]
        )
        for core in cores
        for _ in range(2)
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}

    def on_two_cores():
        os.sched_setaffinity(0, cores)

    try:
        ended = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            preexec_fn=on_two_cores,
            capture_output=True,
            text=True,
            timeout=200,
        )
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert ended.stdout == "True\n", ended.stderr
