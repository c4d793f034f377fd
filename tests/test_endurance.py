"""What holds once holds five hundred times, under load, and for twenty thousand requests."""

from __future__ import annotations

import os
import pathlib
import statistics
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import harness
import pytest
from bench import BATCH, CHILDREN, behind_nginx
from harness import C_TOOL, STAND_IN, Result, ask, kill

pytestmark = pytest.mark.long

CYCLES, ROUNDS, STARTS, REQUESTS = 500, 50, 10, 20000
LISTEN = {"unix": "00010000", "tcp": "0A"}  # in /proc/net: __SO_ACCEPTCON, TCP_LISTEN


def listeners(address: Any) -> set[str]:
    """Return what listens at a Unix path or a (host, port), as /proc/<pid>/fd shows it."""
    table = "tcp" if isinstance(address, tuple) else "unix"
    local, state, inode = (1, 3, 9) if table == "tcp" else (7, 3, 6)
    name = f":{address[1]:04X}" if table == "tcp" else str(address)
    text = os.fsdecode(pathlib.Path("/proc/net", table).read_bytes())  # others' paths are odd
    rows = [line.split() for line in text.splitlines()]
    found = [row for row in rows if len(row) > local and row[local].endswith(name)]
    return {f"socket:[{row[inode]}]" for row in found if row[state] == LISTEN[table]}


def start_ask_and_kill(times: int, address: Any, pid_file: pathlib.Path) -> list[float]:
    """Start, ask and kill an application so many times; return how long the starts took."""
    where = ["-a", address[0], "-p", str(address[1])] if isinstance(address, tuple) else []
    durations = []
    for _ in range(times):
        began = time.monotonic()
        result = harness.run(*(where or ["-s", address]), "-P", pid_file, "--", *STAND_IN)
        durations.append(time.monotonic() - began)
        assert (result.status, result.err) == (0, b"")
        [pid] = result.pids
        assert pid_file.read_text() == str(pid)
        assert ask(address) == pid
        assert listeners(address) == {os.readlink(f"/proc/{pid}/fd/0")}
        kill(pid)
        assert listeners(address) == set()
    return durations


def test_an_application_that_is_killed_can_be_started_again_500_times(
    work: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    addresses = {"unix": work / "socket", "tcp": ("127.0.0.1", harness.free_port())}
    with ThreadPoolExecutor() as pool:
        series = {
            name: pool.submit(start_ask_and_kill, CYCLES, address, work / f"{name}.pid")
            for name, address in addresses.items()
        }
        for name, future in series.items():
            durations = future.result()
            with capsys.disabled():
                print(
                    f"\nendurance: {len(durations)} cycles of start, request, kill -9 on {name}:"
                    f" a start takes {1000 * statistics.median(durations):.0f} ms,"
                    f" at most {1000 * max(durations):.0f} ms"
                )


@contextmanager
def load() -> Iterator[None]:
    """Keep as many processors busy as there are."""
    loops: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(os.cpu_count() or 1):
            loops.append(subprocess.Popen(["/bin/sh", "-c", "while :; do :; done"]))
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def start_at_once(count: int, *args: harness.Arg) -> list[Result]:
    """Run the program so many times; none starts before all shells are there to exec it."""
    reader, writer = os.pipe()  # closing it wakes all readers
    command = ["/bin/sh", "-c", 'read _; exec "$@" </dev/null', "sh", *harness.program, *args]
    keywords: Any = {"stdin": reader, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = harness.clean_environment()
    starts = [subprocess.Popen(command, env=environment, **keywords) for _ in range(count)]
    os.close(reader)
    os.close(writer)
    outputs = [start.communicate(timeout=60) for start in starts]
    return [Result(start.returncode, *output) for start, output in zip(starts, outputs)]


@pytest.mark.differs("2 and 5")
def test_of_ten_starts_at_once_on_a_loaded_machine_one_wins_50_times(
    work: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, pid_file = work / "socket", work / "pid"
    began = time.monotonic()
    with load():
        for number in range(ROUNDS):
            assert path.exists() == number % 2  # and then it is stale
            results = start_at_once(STARTS, "-s", path, "-P", pid_file, "--", *STAND_IN)
            winners = [result for result in results if result.status == 0]
            assert len(winners) == 1, results
            [pid] = winners[0].pids
            assert ask(path) == pid
            assert listeners(path) == {os.readlink(f"/proc/{pid}/fd/0")}
            assert pid_file.read_text() == str(pid)
            for loser in results:
                if loser is not winners[0]:
                    assert (loser.status, loser.pids) == (255, [])
                    assert b"already in use" in loser.err
            kill(pid)
            if number % 2:
                path.unlink()
    with capsys.disabled():
        print(
            f"\nendurance: {ROUNDS} rounds of {STARTS} starts at once under load, every other one"
            f" on a stale socket: one winner each,"
            f" {1000 * (time.monotonic() - began) / ROUNDS:.0f} ms a round"
        )


def test_four_children_behind_nginx_answer_20000_requests_and_none_fails(
    work: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, c_tool = behind_nginx(work / "ours", harness.program), behind_nginx(work / "c", [C_TOOL])
    with ours as send, c_tool as send_under_c_tool:
        # In turns, as the load of the machine changes.
        batches = [(send(), send_under_c_tool()) for _ in range(REQUESTS // BATCH)]
    ratio = statistics.median(c_seconds / seconds for seconds, c_seconds in batches)
    rate = REQUESTS / sum(seconds for seconds, _ in batches)
    with capsys.disabled():
        print(
            f"\nendurance: {REQUESTS} requests through nginx to {CHILDREN} children: none failed,"
            f" {rate:.0f} a second, {ratio:.2f} times the rate of the same under the C tool"
        )
