"""What `make bench` does: time starts of ours beside the C tool's, in turn, as ratios."""

from __future__ import annotations

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import harness
from harness import SLEEP

C_TOOL = "/usr/bin/spawn-fcgi"
LINE = "{:12} {:20}" + " {:>8}" * 6


def in_turn(turns: int, *commands: list[str]) -> list[list[float]]:
    """Return the times in ms of each command, all run in turn so many times."""
    times: list[list[float]] = [[] for _ in commands]
    for _ in range(turns):
        for command, taken in zip(commands, times):
            start = time.perf_counter()
            subprocess.run(command, env=harness.ENVIRONMENT, capture_output=True, check=False)
            taken.append(1000 * (time.perf_counter() - start))
            harness.end_children()
    return times


def measure(turns: int, work: pathlib.Path) -> Iterator[tuple[str, str, list[list[float]]]]:
    """Yield what was measured, beside what, and the times of both."""
    ours, ends = harness.install(work), [["-F", str(n), "--", *SLEEP] for n in (1, 4, 16, 64, 256)]
    for end in [*ends, ["--", "/missing"]]:
        starts = [[tool, "-s", str(work / str(i)), *end] for i, tool in enumerate((ours, C_TOOL))]
        what = "exec fails" if "/missing" in end else " ".join(end[:2])
        yield what, "C tool", in_turn(turns, *starts)
    python = pathlib.Path(ours).read_text().split(" ", 1)[0][2:]
    bare = [python, "-IS", "-c", f"import sys; sys.path += ['{work}/docopt']; import docopt"]
    become = [ours, "-n", "-s", str(work / "2"), "--", "/bin/true"]
    # It is short, so that it takes more turns to find it undisturbed.
    yield "-n", "python3 and docopt", in_turn(5 * turns, become, bare)


def main() -> int:
    """Print the table, with the number of turns from the command line; return the exit status."""
    if not os.access(C_TOOL, os.X_OK):
        print("bench: there is no C tool to compare with, install it: make peers", file=sys.stderr)
        return 1
    harness.adopt()
    try:
        with tempfile.TemporaryDirectory(prefix="sf-bench-") as directory:
            print(LINE.format("ms", "beside", "ours", "median", "its", "median", "ratio", "median"))
            for what, beside, times in measure(int(sys.argv[1]), pathlib.Path(directory)):
                of = [summary(side) for side in times for summary in (min, statistics.median)]
                ratios = [f"{of[0] / of[2]:.2f}", f"{of[1] / of[3]:.2f}"]
                print(LINE.format(what, beside, *(f"{ms:.1f}" for ms in of), *ratios), flush=True)
    except KeyboardInterrupt:
        return 130
    finally:
        harness.end_children()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
