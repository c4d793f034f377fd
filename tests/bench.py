"""What `make bench` does: print the best time of each start, beside the C tool's and its limit."""

from __future__ import annotations

import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import harness

C_TOOL = "/usr/bin/spawn-fcgi"
# Each start, and its limit: so many times the C tool's time, plus so many times D.
STARTS = [
    ("-F 1 -- /bin/sleep 60", 1, 1.7),
    ("-F 4 -- /bin/sleep 60", 1, 1.7),
    ("-F 16 -- /bin/sleep 60", 1, 1.7),
    ("-F 64 -- /bin/sleep 60", 1.25, 0),
    ("-F 256 -- /bin/sleep 60", 1.2, 0),
    ("-- /missing", 0.35, 0),
    ("-n -- /bin/true", 0, 1.45),
]
D = "D: python3 -IS -c 'import docopt'"
ROW = "{:24}{:>10}{:>10}{:>10}  {}"


def main(turns: int, work: pathlib.Path) -> None:
    """Run all starts in turn, so many times; print the best time of each in ms."""
    ours = harness.install(work)
    python = pathlib.Path(ours).read_text().split()[0][2:]
    code = f"import sys; sys.path.append('{work}/prefix/lib/spawn-fcgi'); import docopt"
    commands: dict[Any, list[str]] = {D: [python, "-IS", "-c", code]}
    for words, *_ in STARTS:
        for tool in (ours, C_TOOL):
            commands[tool, words] = [tool, "-s", f"{work}/sock", *words.split()]
    best = dict.fromkeys(commands, math.inf)
    for _ in range(turns):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, env=harness.ENVIRONMENT, capture_output=True, check=False)
            best[name] = min(best[name], 1000 * (time.perf_counter() - start))
            harness.end_children()
    print(ROW.format(f"ms, best of {turns}", "ours", "C tool", "at most", "limit"))
    for words, times_c, times_d in STARTS:
        limit = times_c * best[C_TOOL, words] + times_d * best[D]
        figures = [f"{ms:.1f}" for ms in (best[ours, words], best[C_TOOL, words], limit)]
        print(ROW.format(words, *figures, f"{times_c} * C tool + {times_d} * D"))
    print(f"{D}: {best[D]:.1f}")


if __name__ == "__main__":
    if not os.access(C_TOOL, os.X_OK):
        raise SystemExit("bench: there is no C tool to compare with: install it with make peers")
    harness.adopt()
    try:
        with tempfile.TemporaryDirectory(prefix="sf-bench-") as directory:
            main(int(sys.argv[1]), pathlib.Path(directory))
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        harness.end_children()
