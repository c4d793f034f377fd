"""What the tests share: the program under test, its children, and what /proc says of them.

The program is the one that $SPAWN_FCGI names, also the C tool; otherwise it is ours, as `make
install` puts it into a directory that ordinary users can reach, too. The application is mostly
`sleep`: it changes nothing of what it inherits, so /proc/<pid> shows what it got.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import itertools
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Union

Arg = Union[str, bytes, "os.PathLike[str]"]

ROOT = pathlib.Path(__file__).resolve().parent.parent
C_TOOL = "/usr/bin/spawn-fcgi"
SLEEP = ("/bin/sleep", "60")
NOBODY = 65534  # nobody and nogroup, on every Debian
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PR_SET_CHILD_SUBREAPER = 36

# For cron, whose minutes then take 3 s.
FAST_CLOCK = {
    "LD_PRELOAD": max(glob.glob("/usr/lib/*/faketime/libfaketime.so.1"), default="no libfaketime"),
    "FAKETIME": "+0 x20",
}
# For make: the virtual environment of this run, not made anew under the running tests.
OUR_VENV = (f"VENV={sys.prefix}", "-o", f"{sys.prefix}/ready")
program: list[str] = shlex.split(os.environ.get("SPAWN_FCGI", ""))  # set by conftest if empty


def on_c_tool() -> bool:
    """Say whether the program under test is the C tool."""
    return os.path.realpath(program[0]) == C_TOOL


def reset_signals() -> None:
    """Ignore no signal that the caller of the tests ignores, as a shell does for what has `&`."""
    for number in signal.valid_signals():
        python = number in (signal.SIGPIPE, signal.SIGXFSZ)
        if signal.getsignal(number) is signal.SIG_IGN and not python:
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the fixtures see to the end
        signal.signal(number, signal.default_int_handler)


def become_subreaper() -> None:
    """Inherit the children that a spawner leaves, so that they can be awaited and ended."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def my_children() -> list[int]:
    """Return the PIDs of all direct children of this process."""
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            children = pathlib.Path(f"/proc/self/task/{task}/children").read_text()
            found += map(int, children.split())
    return found


def end_children(but: Sequence[int] = ()) -> None:
    """Kill and reap every child and, as they come to us, every grandchild.

    In no order: the PID 1 of a namespace does not end before all that lived there is reaped.
    """
    while pids := [pid for pid in my_children() if pid not in but]:
        for pid in pids:
            with suppress(ProcessLookupError, ChildProcessError):  # listed twice, as it ended
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.001)


def wait_for(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """Return the first true value of condition, or fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.01)
    return value


class Result(NamedTuple):
    """How a run of the program ended: its status (negative: signal), stdout and stderr."""

    status: int
    out: bytes
    err: bytes

    @property
    def pids(self) -> list[int]:
        """The PIDs that stdout calls spawned."""
        line = rb"^spawn-fcgi: child spawned successfully: PID: (\d+)$"
        return [int(pid) for pid in re.findall(line, self.out, re.M)]

    @property
    def lines(self) -> list[str]:
        """The lines on stderr."""
        return self.err.decode("utf-8", "backslashreplace").splitlines()


def clean_environment(**more: str) -> dict[str, str]:
    """Return the environment that most tests use: small, and without locale or PYTHON*."""
    return {"PATH": PATH, **more}


def popen(
    *args: Arg, env: Mapping[Any, Any] | None = None, **kwargs: Any
) -> subprocess.Popen[bytes]:
    """Start the program with these arguments; kwargs as of subprocess.Popen."""
    for stream in ("stdin", "stdout", "stderr"):
        kwargs.setdefault(stream, subprocess.DEVNULL if stream == "stdin" else subprocess.PIPE)
    kwargs.setdefault("cwd", "/")
    return subprocess.Popen(
        [*program, *args], env=clean_environment() if env is None else env, **kwargs
    )


def as_user(uid: int = NOBODY) -> dict[str, Any]:
    """Return what makes popen() and run() use an ordinary user; nothing if we are one."""
    return {"user": uid, "group": uid, "extra_groups": []} if os.getuid() == 0 else {}


def run(*args: Arg, timeout: float = 20, **kwargs: Any) -> Result:
    """Run the program to its end and return the Result; what it spawned goes on living.

    With -n that is the application's end, so give it one that ends by itself.
    """
    with popen(*args, **kwargs) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return Result(process.returncode, out or b"", err or b"")


@contextmanager
def running(*args: Arg, **kwargs: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run the program with -n, wait until it has become `sleep`, and end it afterwards."""
    with popen("-n", *args, "--", *SLEEP, **kwargs) as process:
        try:
            wait_for(lambda: process.poll() is not None or asleep(process.pid))
            yield process
        finally:
            process.kill()
            process.communicate()


def proc(pid: int, name: str) -> bytes:
    """Return the contents of /proc/<pid>/<name>."""
    return pathlib.Path(f"/proc/{pid}/{name}").read_bytes()


def exe(pid: int) -> str:
    """Return the path of the program that a process runs, empty if it runs none any more."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def asleep(pid: int) -> bool:
    """Say whether a process has become `sleep`: /proc shows its name before exec(2) is over."""
    return exe(pid).endswith("sleep") and proc(pid, "stat").rpartition(b") ")[2][:1] == b"S"


def alive(pid: int) -> bool:
    """Say whether a process is there and no zombie."""
    try:
        return proc(pid, "stat").rpartition(b") ")[2][:1] not in b"ZX"
    except OSError:
        return False


class State(NamedTuple):
    """What a process has inherited, as the kernel shows it."""

    fds: dict[int, str]  # fd: what it is open on, as in /proc/<pid>/fd
    uids: list[int]  # real, effective, saved, file system
    gids: list[int]
    groups: list[int]
    ignored: set[int]  # signal numbers
    blocked: set[int]
    caught: set[int]
    umask: int
    session: int
    process_group: int
    parent: int
    cwd: str
    root: str
    argv: list[bytes]
    environ: list[bytes]  # entries, in order
    limits: str


def state(pid: int) -> State:
    """Return the State of a process."""
    status = dict(re.findall(r"^(\w+):[ \t]*(.*)$", proc(pid, "status").decode(), re.M))

    def numbers(field: str) -> list[int]:
        return [int(word) for word in status[field].split()]

    def signals(field: str) -> set[int]:
        mask = int(status[field], 16)
        # 32 and 33 are the C library's own: who runs the tests may ignore them, no program can.
        return {n for n in range(1, 65) if mask >> (n - 1) & 1 and n not in (32, 33)}

    stat = proc(pid, "stat").rpartition(b") ")[2].split()
    fds = {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    return State(
        fds=fds,
        uids=numbers("Uid"),
        gids=numbers("Gid"),
        groups=numbers("Groups"),
        ignored=signals("SigIgn"),
        blocked=signals("SigBlk"),
        caught=signals("SigCgt"),
        umask=int(status["Umask"], 8),
        session=int(stat[3]),
        process_group=int(stat[2]),
        parent=int(stat[1]),
        cwd=os.readlink(f"/proc/{pid}/cwd"),
        root=os.readlink(f"/proc/{pid}/root"),
        argv=proc(pid, "cmdline").split(b"\0")[:-1],
        environ=proc(pid, "environ").split(b"\0")[:-1],
        limits=proc(pid, "limits").decode(),
    )


@functools.cache
def ports() -> tuple[Iterator[int], socket.socket]:
    """Return ports for this suite alone, below the ephemeral ones, and what claims them.

    Suites may run side by side; the name of an abstract Unix socket lasts as long as the suite.
    """
    claim = socket.socket(socket.AF_UNIX)
    for first in range(10000, 32000, 1000):
        with suppress(OSError):
            claim.bind(f"\0spawn-fcgi-tests-{first}")
            return itertools.cycle(range(first, first + 1000)), claim
    raise AssertionError("22 suites run already")


def free_port() -> int:
    """Return a TCP port that nobody uses now, and that nobody else is given meanwhile."""
    while True:
        port = next(ports()[0])
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port


def connects(address: Any) -> bool:
    """Say whether somebody listens at a Unix path or a (host, port)."""
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    with socket.socket(family) as probe:
        probe.settimeout(5)
        return probe.connect_ex(address if family == socket.AF_INET else os.fspath(address)) == 0


def reachable_python(directory: pathlib.Path) -> str:
    """Return the interpreter of this run in a place where ordinary users can execute it.

    One below /root, where pyenv has them, is copied, and so is its library.
    """
    python = pathlib.Path(os.path.realpath(sys.executable))
    if all(parent.stat().st_mode & 0o005 == 0o005 for parent in python.parents):
        return str(python)
    stdlib, libdir = pathlib.Path(sysconfig.get_path("stdlib")), sysconfig.get_config_var("LIBDIR")
    unused = ("test", "site-packages", "config-*", "ensurepip", "idlelib", "tkinter", "lib2to3")
    shutil.copytree(stdlib, directory / "lib" / stdlib.name, ignore=shutil.ignore_patterns(*unused))
    for library in pathlib.Path(libdir).glob("libpython*.so.*"):
        shutil.copy(library, directory / "lib")
    copy = directory / "bin" / python.name
    copy.parent.mkdir()
    # $ORIGIN would not do: it takes /proc, and means nothing in a set-uid start.
    runpath = os.fsencode(directory / "lib").ljust(len(libdir), b"\0")
    copy.write_bytes(python.read_bytes().replace(os.fsencode(libdir) + b"\0", runpath + b"\0"))
    assert len(runpath) == len(libdir), f"{directory}: too long for a run path"
    copy.chmod(0o755)
    return str(copy)


def install(directory: pathlib.Path, python: str = "") -> str:
    """Install our program below a directory, with `make install`; return its path.

    It is for this interpreter, or else for one that ordinary users can execute, too.
    """
    python = python or reachable_python(directory)
    command = ["make", "-s", "-C", str(ROOT), "install", f"PREFIX={directory / 'prefix'}"]
    command += [f"PYTHON={python}", *OUR_VENV]
    environment = {"PATH": PATH, "HOME": os.environ.get("HOME", "/")}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return str(directory / "prefix/bin/spawn-fcgi")


def snapshot(directory: pathlib.Path) -> dict[str, tuple[Any, ...]]:
    """Return inode, mode, owner, time and content of each entry of a directory, by name."""
    found = {}
    for path in directory.iterdir():
        seen = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        link = os.readlink(path) if path.is_symlink() else ""
        owner = (seen.st_uid, seen.st_gid)
        found[path.name] = (seen.st_ino, oct(seen.st_mode), owner, seen.st_mtime_ns, content, link)
    return found


def assert_refused(result: Result, *names: Arg) -> None:
    """Assert that a start came to nothing before the fork, and that stderr names these things.

    The C tool names little, so that of its stderr no more is asked than to be there.
    """
    assert (result.status, result.out) == (255, b"")
    assert result.err
    if not on_c_tool():
        assert len(result.lines) == 1
        for name in names:
            assert os.fsencode(name) in result.err


def mounting(*mounts: tuple[Arg, Arg]) -> Callable[[], None]:
    """Return a preexec_fn for root that makes mounts which only the new process family sees.

    Each is a source to bind and its target; the source "tmpfs" is a new, empty file system.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, bind, recursive, private = 0x20000, 0x1000, 0x4000, 0x40000
    calls: list[tuple[Any, ...]] = [(b"none", b"/", None, recursive | private, None)]
    for source, target in mounts:
        kind, flags = (b"tmpfs", 0) if source == "tmpfs" else (None, bind)
        calls.append((os.fsencode(source), os.fsencode(target), kind, flags, None))

    def mount() -> None:
        failed = libc.unshare(new_namespace) or any(libc.mount(*call) for call in calls)
        if failed:
            raise OSError(ctypes.get_errno(), "unshare or mount")

    return mount


def trace(calls: str, log: pathlib.Path, *args: Arg, **kwargs: Any) -> tuple[Result, list[str]]:
    """Run the program under strace; return the Result, and these system calls in order.

    Each is "<pid> <call>(...) = ...". Give the program an application that ends by itself.
    """
    command = ["strace", "-f", "-s", "256", "-e", f"trace={calls}", "-e", "signal=none"]
    command += ["-o", str(log), *program]
    defaults = {"env": clean_environment(), "cwd": "/", "stdin": subprocess.DEVNULL, "timeout": 30}
    done = subprocess.run(
        [*command, *args], check=False, capture_output=True, **{**defaults, **kwargs}
    )
    lines = [re.sub(r"^(\d+) +", r"\1 ", line) for line in log.read_text().splitlines()]
    starts = [line for line in lines if re.match(r"\d+ \w+\(", line)]
    return Result(done.returncode, done.stdout, done.stderr), starts


@contextmanager
def by(*command: str) -> Iterator[None]:
    """Have the program under test run by another that becomes or starts it, such as strace."""
    program[:0] = command
    try:
        yield
    finally:
        del program[: len(command)]


def tampering(calls: str, how: str) -> tuple[str, ...]:
    """Return an strace that tampers with system calls of the parent, and of no child."""
    return "strace", "-o", os.devnull, "-e", f"trace={calls}", "-e", f"inject={calls}:{how}"


# Answers every connection with its PID, also one that a spawner makes to see whether a socket is
# in use, and is gone; there in 5 ms.
STAND_IN = (
    "/usr/bin/perl",
    "-e",
    r'$SIG{PIPE} = "IGNORE"; warn "serving as $$\n";'
    r"while (accept my $c, STDIN) { syswrite $c, $$; close $c }",
)


def ask(address: Any) -> int:
    """Return the PID with which the STAND_IN at a Unix path or a (host, port) answers."""
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    with socket.socket(family) as sock:
        sock.settimeout(20)
        sock.connect(address if family == socket.AF_INET else os.fspath(address))
        with sock.makefile("rb") as file:
            return int(file.read())


def kill(pid: int) -> None:
    """Kill a child, or what the program has left to us, and wait for its end."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@contextmanager
def nginx(directory: pathlib.Path, *servers: str) -> Iterator[int]:
    """Run nginx with these FastCGI `server`s as one upstream; yield its port on 127.0.0.1."""
    port, log = free_port(), directory / "nginx.log"
    kinds = ("client_body", "fastcgi", "proxy", "scgi", "uwsgi")
    paths = "".join(f"{kind}_temp_path {directory}/nginx;" for kind in kinds)
    upstream = "".join(f"server {server};" for server in servers)
    (directory / "nginx.conf").write_text(
        f"daemon off; {'user root;' if os.getuid() == 0 else ''}\n"
        f"pid {directory}/nginx.pid; error_log {log}; events {{}}\n"
        f"http {{ access_log off; {paths} upstream app {{ {upstream} }}\n"
        f"server {{ listen 127.0.0.1:{port} backlog=1024;\n"
        "location / { fastcgi_pass app; fastcgi_param QUERY_STRING $query_string; } } }\n"
    )
    command = ["/usr/sbin/nginx", "-e", str(log), "-c", str(directory / "nginx.conf")]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            wait_for(lambda: process.poll() is not None or connects(("127.0.0.1", port)))
            assert process.poll() is None, log.read_text()
            yield port
        finally:
            process.terminate()  # the master ends its workers
            process.communicate()
