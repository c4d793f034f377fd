"""What a start may cost: ratios to the C tool and the bare interpreter, measured in turn.

The best of several turns stands for each side: what a loaded machine adds is not ours.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import harness
import pytest
from bench import beside_c_tool, in_turn
from harness import SLEEP

pytestmark = pytest.mark.alone

ROWS = [
    *((f"-F {children}, ms", "C tool") for children in (1, 4, 16, 64, 256)),
    ("exec fails, ms", "C tool"),
    ("-n, ms", "python3 -I -c pass"),
    ("-n, ms", "python3 spawn_fcgi.py"),
    ("peak memory, MiB", "C tool"),
    ("left in memory", "C tool"),
    ("requests a second", "C tool"),
]


@pytest.mark.parametrize(
    ("children", "limit", "turns"),
    [
        (1, 1.5, 10),
        pytest.param(4, 1.5, 10, marks=pytest.mark.long),
        pytest.param(16, 1.5, 10, marks=pytest.mark.long),
        (64, 1.6, 7),
        (256, 1.8, 5),
    ],
)
def test_a_start_takes_little_longer_than_the_c_tool(
    work: pathlib.Path, children: int, limit: float, turns: int
) -> None:
    starts = beside_c_tool(harness.program[0], work, "-F", str(children), "--", *SLEEP)
    ours, c_tool = map(min, in_turn(turns, *starts))
    print(f"-F {children}: {ours / c_tool:.2f} times the C tool")
    assert ours / c_tool <= limit


def test_a_start_whose_exec_fails_is_faster_than_the_c_tool(work: pathlib.Path) -> None:
    starts = beside_c_tool(harness.program[0], work, "--", "/missing")
    ours, c_tool = map(min, in_turn(10, *starts, status=2))
    print(f"exec fails: {ours / c_tool:.2f} times the C tool")
    # The C tool beside itself is as fast as itself.
    assert ours < c_tool or harness.on_c_tool()


def test_no_fork_takes_little_longer_than_the_bare_interpreter(work: pathlib.Path) -> None:
    # Installed for the interpreter in its own place: a copy of one starts faster.
    python = os.path.realpath(sys.executable)
    program = harness.install(work, python)
    no_fork = [program, "-n", "-s", str(work / "s"), "--", "/bin/true"]
    ours, bare = map(min, in_turn(30, no_fork, [python, "-I", "-c", "pass"]))
    print(f"-n: {ours / bare:.2f} times `{python} -I -c pass`")
    assert ours / bare <= 2.2


def test_nothing_of_the_spawner_stays(work: pathlib.Path) -> None:
    result = harness.run("-s", work / "s", "-F", "3", "--", *SLEEP)
    assert sorted(harness.my_children()) == sorted(result.pids)
    assert all(harness.exe(pid).endswith("sleep") for pid in result.pids)


@pytest.mark.long
def test_make_bench_prints_every_row_and_leaves_nothing_behind(work: pathlib.Path) -> None:
    others, environment = harness.my_children(), harness.clean_environment(TMPDIR=str(work))
    command = ["make", "-s", "-C", str(harness.ROOT), *harness.OUR_VENV, "bench", "TURNS=1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [tuple(re.split("  +", line)) for line in done.stdout.splitlines()[2:]]
    assert [row[:2] for row in rows] == ROWS
    for what, _, *figures in rows:
        if what == "left in memory":
            assert figures == ["nothing", "nothing"]
        else:
            assert len(figures) == 6
            assert all(float(figure) > 0 for figure in figures)
    assert os.listdir(work) == []
    assert harness.my_children() == others
