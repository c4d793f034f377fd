"""What `make bench` does: measure ours and the C tool in turn, and print one table."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import harness
from harness import C_TOOL, SLEEP

PEERS = (C_TOOL, "/usr/sbin/nginx", "/usr/bin/ab")
CHILDREN, BATCH = 4, 1000
LINE = "{:18} {:21}" + " {:>9}" * 6


def row(
    what: str,
    beside: str,
    ours: Sequence[float],
    other: Sequence[float],
    *,
    best: Callable[[Sequence[float]], float] = min,
) -> str:
    """Return a line of the table: best and median of both sides, and how many times the other's."""
    figures = [summary(side) for side in (ours, other) for summary in (best, statistics.median)]
    ratios = [f"{mine / its:.2f}" for mine, its in zip(figures[:2], figures[2:])]
    return LINE.format(what, beside, *(f"{figure:.1f}" for figure in figures), *ratios)


def beside_c_tool(program: str, directory: pathlib.Path, *args: str) -> list[list[str]]:
    """Return the commands of a program and the C tool that start one thing on two Unix sockets."""
    return [
        [program, "-s", str(directory / "ours.socket"), *args],
        [C_TOOL, "-s", str(directory / "c.socket"), *args],
    ]


def in_turn(turns: int, *commands: list[str], status: int = 0) -> list[list[float]]:
    """Return the times in ms of each command, all run in turn so many times."""
    times: list[list[float]] = [[] for _ in commands]
    others = harness.my_children()
    for _ in range(turns):
        for command, taken in zip(commands, times):
            start = time.perf_counter()
            done = subprocess.run(
                command, env=harness.clean_environment(), capture_output=True, check=False
            )
            taken.append(1000 * (time.perf_counter() - start))
            assert done.returncode == status, (command, done.stderr)
            harness.end_children(but=others)
    return times


def peak_memory(command: list[str]) -> float:
    """Return the most memory in MiB that a command takes, without that of what it spawns."""
    # Started by a shell and left to us: ru_maxrss is also what a process was before its execve(2).
    shell = ["/bin/sh", "-c", '"$@" >/dev/null & exec echo $!', "sh", *command]
    pid = subprocess.check_output(shell, env=harness.clean_environment())
    _, status, usage = os.wait4(int(pid), 0)
    assert status == 0, command
    harness.end_children()
    return usage.ru_maxrss / 1024


def left_in_memory(command: list[str]) -> str:
    """Return which programs but SLEEP run after a command that starts it, or "nothing"."""
    subprocess.run(command, env=harness.clean_environment(), capture_output=True, check=True)

    def strangers() -> set[str]:
        programs = {harness.exe(pid) or "a zombie" for pid in harness.my_children()}
        return programs - {os.path.realpath(SLEEP[0])}

    with suppress(AssertionError):  # the C tool does not wait for its children's exec
        harness.wait_for(lambda: not strangers(), 2)
    left = " ".join(strangers()) or "nothing"
    harness.end_children()
    return left


@contextmanager
def behind_nginx(directory: pathlib.Path, program: list[str]) -> Iterator[Callable[[], float]]:
    """Have a program spawn the sample application behind nginx; yield what sends it a batch.

    That returns the seconds it took. No request may fail, and no child may end.
    """
    directory.mkdir()
    for name in ("app.fcgi", "fastcgi.py"):
        shutil.copy(harness.ROOT / "tests" / name, directory)
    args = ["-F", str(CHILDREN), "-s", str(directory / "socket"), "--", str(directory / "app.fcgi")]
    environment = harness.clean_environment()
    done = subprocess.run([*program, *args], env=environment, capture_output=True, check=True)
    pids = harness.Result(0, done.stdout, done.stderr).pids
    assert len(pids) == CHILDREN
    with harness.nginx(directory, f"unix:{directory}/socket") as port:
        # -k: else the client runs out of ports; -l: answers may differ in length
        command = ["ab", "-q", "-k", "-l", "-n", str(BATCH), "-c", "8", f"http://127.0.0.1:{port}/"]

        def send() -> float:
            done = subprocess.run(
                command, check=False, env=environment, capture_output=True, timeout=120
            )
            report = done.stdout.decode()
            figures = dict(re.findall(r"(?m)^([^:\n]+): +([\d.]+)", report))
            assert figures.get("Complete requests") == str(BATCH), (report, done.stderr)
            assert figures["Failed requests"] == "0", report
            assert "Non-2xx responses" not in figures, report
            return float(figures["Time taken for tests"])

        yield send
    assert all(map(harness.alive, pids))
    for pid in pids:
        harness.kill(pid)


def measure(turns: int, work: pathlib.Path) -> Iterator[str]:
    """Yield each line of the table once it is measured, in so many turns."""
    yield LINE.format("", "", "ours", "", "beside it", "", "ratio", "")
    yield LINE.format("", "beside it", *("best", "median") * 3)
    python = os.path.realpath(sys.executable)  # itself: a link or pyenv's shim takes time to find
    ours = harness.install(work, python)
    for children in (1, 4, 16, 64, 256):
        starts = beside_c_tool(ours, work, "-F", str(children), "--", *SLEEP)
        yield row(f"-F {children}, ms", "C tool", *in_turn(turns, *starts))
    failing = beside_c_tool(ours, work, "--", "/missing")
    yield row("exec fails, ms", "C tool", *in_turn(turns, *failing, status=2))
    no_fork = ["-n", "-s", str(work / "n.socket"), "--", "/bin/true"]
    bare, script = [python, "-I", "-c", "pass"], str(harness.ROOT / "spawn_fcgi.py")
    uninstalled = [sys.executable, script, *no_fork]
    # They are short, so that it takes more turns to find them undisturbed.
    mine, its, slow = in_turn(3 * turns, [ours, *no_fork], bare, uninstalled)
    yield row("-n, ms", "python3 -I -c pass", mine, its)
    yield row("-n, ms", "python3 spawn_fcgi.py", mine, slow)
    pair = beside_c_tool(ours, work, "-F", "4", "--", *SLEEP)
    peaks = [[peak_memory(command) for command in pair] for _ in range(turns)]
    yield row("peak memory, MiB", "C tool", *zip(*peaks))
    left, left_by_c = map(left_in_memory, pair)
    yield LINE.format("left in memory", "C tool", left, "", left_by_c, "", "", "")
    with behind_nginx(work / "app", [ours]) as send, behind_nginx(work / "c", [C_TOOL]) as c_send:
        rates = [(BATCH / send(), BATCH / c_send()) for _ in range(turns)]
    yield row("requests a second", "C tool", *zip(*rates), best=max)


def main() -> int:
    """Print the table, with the number of turns from the command line; return the exit status."""
    for peer in PEERS:
        if not os.access(peer, os.X_OK):
            print(f"bench: {peer} is missing, install: make peers", file=sys.stderr)
            return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    harness.become_subreaper()
    try:
        with tempfile.TemporaryDirectory(prefix="sf-bench-") as directory:
            for line in measure(int(sys.argv[1]), pathlib.Path(directory)):
                print(line.rstrip(), flush=True)
    except KeyboardInterrupt:
        return 130
    finally:
        harness.end_children()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
