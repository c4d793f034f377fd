"""What a start may cost: ratios to the C tool and the bare interpreter, measured in turn.

The best of several turns stands for each side: what a loaded machine adds is not ours.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

import harness
import pytest
from harness import C_TOOL, SLEEP

pytestmark = pytest.mark.alone


def best(turns: int, *commands: list[str]) -> list[float]:
    """Return the shortest time in seconds of each command, all run in turn so many times."""
    times: list[list[float]] = [[] for _ in commands]
    others = harness.my_children()
    for _ in range(turns):
        for command, taken in zip(commands, times):
            start = time.perf_counter()
            subprocess.run(
                command, env=harness.clean_environment(), capture_output=True, check=False
            )
            taken.append(time.perf_counter() - start)
            harness.end_children(but=others)
    return [min(taken) for taken in times]


def start(program: str, path: pathlib.Path, *args: str) -> list[str]:
    """Return the command that starts an application on a Unix socket of its own."""
    return [program, "-s", str(path), *args]


@pytest.mark.parametrize(
    ("children", "limit", "turns"), [(1, 1.5, 10), (4, 1.5, 10), (64, 1.6, 8), (256, 1.8, 6)]
)
def test_a_start_takes_little_longer_than_the_c_tool(
    work: pathlib.Path, children: int, limit: float, turns: int
) -> None:
    app = ("-F", str(children), "--", *SLEEP)
    ours, c_tool = best(
        turns,
        start(harness.program[0], work / "ours", *app),
        start(C_TOOL, work / "c", *app),
    )
    print(f"-F {children}: {ours / c_tool:.2f} times the C tool")
    assert ours / c_tool <= limit


def test_a_start_whose_exec_fails_is_faster_than_the_c_tool(work: pathlib.Path) -> None:
    ours, c_tool = best(
        10,
        start(harness.program[0], work / "ours", "--", "/missing"),
        start(C_TOOL, work / "c", "--", "/missing"),
    )
    print(f"exec fails: {ours / c_tool:.2f} times the C tool")
    # The C tool beside itself is as fast as itself.
    assert ours < c_tool or harness.on_c_tool()


def test_no_fork_takes_little_longer_than_the_bare_interpreter(work: pathlib.Path) -> None:
    # Installed for the interpreter in its own place: a copy of one starts faster.
    python = os.path.realpath(sys.executable)
    program = harness.install(work, python)
    ours, bare = best(
        30, start(program, work / "s", "-n", "--", "/bin/true"), [python, "-I", "-c", "pass"]
    )
    print(f"-n: {ours / bare:.2f} times `{python} -I -c pass`")
    assert ours / bare <= 2.2


def test_nothing_of_the_spawner_stays(work: pathlib.Path) -> None:
    result = harness.run("-s", work / "s", "-F", "3", "--", *SLEEP)
    assert sorted(harness.my_children()) == sorted(result.pids)
    assert all(harness.exe(pid).endswith("sleep") for pid in result.pids)
