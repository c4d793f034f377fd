"""What a hostile local user can try: paths, locks, environments, descriptors, values."""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import re
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness import SLEEP, Arg, alive, assert_refused, popen, run, snapshot

ROOT = pytest.mark.root
PTRACE_TRACEME, PTRACE_SYSCALL = 0, 24
TRUE = ("--", "/bin/true")


def read_fifo(path: Path) -> Any:
    """Make a FIFO that has a reader, as long as the result is kept."""
    os.mkfifo(path)
    return open(path, "r+b", buffering=0)


# What somebody puts at the path of -P, beside the file "secret".
PLANTS: list[Any] = [
    pytest.param(lambda path: path.symlink_to("secret"), id="a-link-to-a-secret"),
    pytest.param(lambda path: path.symlink_to("nothing"), id="a-link-to-nothing"),
    pytest.param(os.mkfifo, id="a-FIFO"),
    pytest.param(read_fifo, id="a-FIFO-with-a-reader"),
    pytest.param(os.mkdir, id="a-directory"),
    pytest.param(lambda path: path.touch(), id="an-empty-file", marks=ROOT),
    pytest.param(lambda path: os.link(path.with_name("secret"), path), id="a-hard-link"),
    pytest.param(lambda path: os.mknod(path, 0o20666, 0x103), id="a-device", marks=ROOT),
]


@pytest.mark.parametrize("plant", PLANTS)
def test_what_others_put_at_the_path_of_P_is_refused(plant: Any, work: Path, port: str) -> None:
    (work / "secret").write_text("secret")
    reader = plant(work / "pids")
    if os.getuid() == 0 and (work / "pids").lstat().st_nlink != 2:
        os.lchown(work / "pids", 4199, 4199)  # whom no machine knows
    work.chmod(0o1755 if (work / "pids").is_file() else 0o755)  # 1777 has fs.protected_regular
    before = snapshot(work)
    assert_refused(run("-p", port, "-P", "pids", *TRUE, cwd=work, timeout=5), "pids")
    assert snapshot(work) == before
    getattr(reader, "close", int)()


def step_through(at_each_stop: Callable[[], object], *args: Arg, cwd: Path) -> int:
    """Run the program, stopped before and after each of its system calls; return its wait status.

    Nobody can be faster than what is called at each stop.
    """
    trace = ctypes.CDLL(None).ptrace
    trace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]

    def begin() -> None:
        signal.alarm(20)
        trace(PTRACE_TRACEME, 0, None, None)

    with popen(*args, preexec_fn=begin, cwd=cwd) as process:
        while os.WIFSTOPPED(status := os.waitpid(process.pid, 0)[1]):
            at_each_stop()
            number = os.WSTOPSIG(status)
            trace(PTRACE_SYSCALL, process.pid, None, 0 if number == signal.SIGTRAP else number)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode


def swap_in(work: Path, stops: Iterator[int], moment: int) -> None:
    """At the so-manieth stop that sees a socket at "it", put "other" there."""
    if (work / "it").is_socket() and next(stops) == moment:
        os.rename(work / "other", work / "it")


@pytest.mark.parametrize("options", ["-M 666", pytest.param("-U 4199", marks=ROOT)])
@pytest.mark.parametrize("plant", [os.symlink, os.link], ids=["link", "file"])
def test_no_other_file_gets_owner_or_mode_whenever_it_takes_the_path_of_s(
    plant: Callable[[str, Path], None], options: str, work: Path
) -> None:
    (work / "secret").write_text("secret")
    (work / "secret").chmod(0o600)
    before = snapshot(work)["secret"]
    planted, moment = True, 0
    while planted:
        plant(str(work / "secret"), work / "other")
        moment += 1
        stops = itertools.count(1)
        swap = partial(swap_in, work, stops, moment)
        step_through(swap, "-s", "it", *options.split(), "-n", *TRUE, cwd=work)
        planted = not os.path.lexists(work / "other")
        assert snapshot(work)["secret"] == before
        assert not planted or os.path.lexists(work / "it"), "it is not removed, either"
        for name in ("it", "other"):
            (work / name).unlink(missing_ok=True)
    assert moment > 10, "so many system calls see the socket"


def test_a_link_swapped_in_at_the_path_of_P_leads_nowhere(work: Path, port: str) -> None:
    (work / "secret").write_text("secret")
    before = snapshot(work)["secret"]
    (work / "link").symlink_to("secret")

    def swap() -> None:
        if (work / "pid").exists() and (work / "link").is_symlink():
            os.rename(work / "link", work / "pid")

    assert step_through(swap, "-p", port, "-P", "pid", *TRUE, cwd=work) == 0
    assert (work / "pid").is_symlink()
    assert snapshot(work)["secret"] == before


def test_a_full_queue_and_the_lock_held_for_ever_make_nobody_wait(work: Path) -> None:
    lock = os.open(work, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with socket.socket(socket.AF_UNIX) as own, socket.socket(socket.AF_UNIX) as client:
        own.bind(str(work / "s"))
        own.listen(0)
        client.connect(str(work / "s"))
        assert_refused(run("-s", work / "s", *TRUE, timeout=8), work / "s", "in use")
    os.close(lock)


@pytest.mark.parametrize("line", ["-s fifo/s", "-p PORT -P fifo/p", "-p PORT -d fifo"])
def test_a_FIFO_as_a_directory_makes_nobody_wait(line: str, work: Path, port: str) -> None:
    os.mkfifo(work / "fifo")
    args = line.replace("PORT", port).split()
    assert_refused(run(*args, *TRUE, cwd=work, timeout=5), args[-1], "Not a directory")
    assert os.listdir(work) == ["fifo"]


EVIL = ["PYTHONPATH=.", "PYTHONHOME=.", "PYTHONSTARTUP=./docopt.py", "PYTHONUSERBASE=.", "HOME=."]
EVIL += ["PYTHONINSPECT=1", "PYTHONWARNINGS=error", "PYTHONVERBOSE=1", "PYTHONUTF8=nonsense"]
MODULES = ["docopt", "socket", "subprocess", "signal", "encodings", "sitecustomize", "spawn_fcgi"]


@pytest.mark.parametrize(("mode", "variable"), [("fork", EVIL[0]), *(("-n", v) for v in EVIL)])
def test_no_code_gets_in_by(mode: str, variable: str, work: Path, port: str) -> None:
    for name in MODULES:
        (work / f"{name}.py").write_text("import os; os.mkdir('/proc/self/cwd/loaded')")
    env = dict([variable.replace(".", str(work), 1).split("=")])
    app = ["--", *SLEEP] if mode == "fork" else ["-n", *TRUE]
    assert run("-p", port, *app, cwd=work, env=env)[::2] == (0, b"")
    assert len(os.listdir(work)) == len(MODULES)


def descriptors(most: int) -> Callable[[], None]:
    """Return a preexec_fn that lets a process have so many descriptors."""
    return partial(resource.setrlimit, resource.RLIMIT_NOFILE, (most, most))


@pytest.mark.parametrize(
    ("where", "limit"),
    [
        *(("-p PORT", limit) for limit in (4, 5, 6)),
        *(("-s s -P pid", limit) for limit in range(4, 9)),
    ],
)
def test_too_few_descriptors_are_told_in_one_line(
    where: str, limit: int, port: str, work: Path
) -> None:
    args = where.replace("PORT", port).split()
    result = run(*args, *TRUE, cwd=work, preexec_fn=descriptors(limit))
    assert result.status in (1, 255), result
    assert re.fullmatch(rb"spawn-fcgi: [^\n\[]+: Too many open files\n", result.err)
    assert not (work / "s").exists() or b"fork" in result.err


def test_eight_descriptors_are_enough(port: str) -> None:
    result = run("-p", port, "-F9", "--", *SLEEP, preexec_fn=descriptors(8))
    assert (result.status, len(result.pids)) == (0, 9), result


def test_thousands_of_inherited_descriptors_are_closed(port: str) -> None:
    def inherit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        for fd in range(100, most, 2):
            os.dup2(0, fd)

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = min(hard % 2**32, 10_000)  # -1 is no limit
    result = run("-p", port, "--", *SLEEP, preexec_fn=inherit, close_fds=False)
    assert sorted(os.listdir(f"/proc/{result.pids[0]}/fd")) == ["0", "1", "2"]


@pytest.mark.parametrize("size", [0, 3])
def test_a_limit_of_file_size_leaves_no_half_pid(size: int, work: Path, port: str) -> None:
    args = ["-p", port, "-F2", "-P", "pids", "--", *SLEEP]
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    result = run(*args, cwd=work, preexec_fn=full)
    assert (result.status, len(result.lines), "pids" in result.lines[0]) == (0, 1, True)
    assert [alive(pid) for pid in result.pids] == [True, True]
    assert (work / "pids").read_bytes() == b""


def test_a_hundred_thousand_arguments_go_through(port: str) -> None:
    app = ["/bin/sh", "-c", "echo $#", *["-x"] * 100_000]
    assert run("-n", "-p", port, "--", *app, timeout=5) == (0, b"99999\n", b"")


def test_a_wrong_option_behind_thousands_of_words_is_named_without_a_hang(port: str) -> None:
    assert_refused(run("-p", port, "app", *["x"] * 3000, "-X", timeout=10), "-X", "--")


ODD = "x\n\x1b[2J\r\udcff\xe9"
LINES: list[Any] = ["-p ODD", "-p PORT -a ODD", "-s no/ODD", "-s s -M ODD", "-p PORT -P no/ODD"]
LINES += ["-p PORT -d ODD", "-p PORT -F ODD", "-p PORT -C ODD", "-xODD -s s", "-n -p PORT -- ODD"]
LINES += [pytest.param(f"-p PORT {option} ODD", marks=ROOT) for option in ("-c", "-u", "-G")]


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("line", LINES)
def test_odd_bytes_forge_no_line(line: str, locale: str, work: Path, port: str) -> None:
    args = [word.replace("PORT", port).replace("ODD", ODD) for word in line.split()]
    result = run(*args, *([] if "--" in line else TRUE), cwd=work, env={"LC_ALL": locale})
    assert result.status == (2 if "--" in line else 255)
    assert re.fullmatch(rb"spawn-fcgi: [^\x00-\x1f\x7f]*x\\x0a\\x1b[^\x00-\x1f\x7f]*\n", result.err)
    assert os.listdir(work) == []
