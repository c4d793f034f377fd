"""`make demo` shows four processes at work, says what went wrong, and leaves nothing."""

from __future__ import annotations

import fcntl
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import harness
import pytest

F_GETPIPE_SZ = 1032  # in fcntl from Python 3.10 on
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
README = harness.ROOT / "README.md"
FILES = ("spawn_fcgi.py", "tests/demo.py", "tests/fastcgi.py", "tests/app.fcgi")


@pytest.fixture
def tree(work: pathlib.Path) -> pathlib.Path:
    """Copy what the demo needs to a directory in which nothing else happens."""
    for name in FILES:
        (work / name).parent.mkdir(exist_ok=True)
        shutil.copy(harness.ROOT / name, work / name)
    (work / "tmp").mkdir()
    return work


def without_names(transcript: str) -> str:
    """Return what the demo prints without its port, PIDs and directory."""
    return re.sub(r"(?<=pid: )\d+|(?<=PID: )\d+|(?<=-p )\d+|/\S*/(?=app.pid)", "N", transcript)


def contents(tree: pathlib.Path) -> list[pathlib.Path]:
    """Return all that is in a directory."""
    return sorted(tree.rglob("*"))


def heed_interruptions() -> None:
    """Ignore no signal that the shell has us ignore, as with `&` and nohup."""
    for number in INTERRUPTIONS:
        signal.signal(number, signal.SIG_DFL)


def demo(
    tree: pathlib.Path, *port: str, stdout: int = subprocess.PIPE, group: bool = False
) -> subprocess.Popen[bytes]:
    """Start the demo, with temporary files in the tree, too."""
    return subprocess.Popen(
        [sys.executable, "tests/demo.py", *port],
        cwd=tree,
        env=harness.clean_environment(TMPDIR=str(tree / "tmp")),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        start_new_session=group,
        preexec_fn=heed_interruptions,
    )


def end(process: subprocess.Popen[bytes]) -> harness.Result:
    """Wait for the demo and return its Result."""
    with process:
        try:
            out, err = process.communicate(timeout=30)
        except BaseException:
            process.kill()
            raise
    return harness.Result(process.returncode, out or b"", err)


@pytest.fixture
def leaves_nothing(tree: pathlib.Path) -> Callable[[], bool]:
    """Return what says whether the processes and files are those of the beginning."""
    before = harness.my_children(), contents(tree)
    return lambda: (harness.my_children(), contents(tree)) == before


def test_the_demo_shows_four_processes_and_their_answers(
    tree: pathlib.Path, leaves_nothing: Callable[[], bool]
) -> None:
    port = harness.free_port()
    result = end(demo(tree, str(port)))
    assert (result.status, result.err) == (0, b"")
    text = result.out.decode()
    assert text.startswith(f"$ spawn-fcgi -a 127.0.0.1 -p {port} -F 4 -P ")
    answers = re.findall(r"^request \d: 200 from pid: (\d+), .*REQUEST_URI=/hello/\d", text, re.M)
    assert len(answers) == 8
    assert {int(pid) for pid in answers} == set(result.pids)
    assert len(result.pids) == 4
    assert leaves_nothing()
    assert not harness.connects(("127.0.0.1", port))
    [transcript] = re.findall(r"^```\n(\$ .*?)^```$", README.read_text(), re.M | re.S)
    assert without_names(text) == without_names(transcript)


def test_a_busy_port_is_named_and_fails_the_demo(
    tree: pathlib.Path, leaves_nothing: Callable[[], bool]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        result = end(demo(tree, str(port)))
        assert result.status not in (0, 1)  # the spawner's own
        assert len(result.lines) == 1
        assert re.search(rf"\b{port}\b.*in use", result.lines[0])
        assert result.pids == []
        assert leaves_nothing()


@pytest.mark.parametrize("port", ["99999", "nonsense", "0", "-1"])
def test_a_wrong_port_is_named_and_fails_the_demo(
    tree: pathlib.Path, leaves_nothing: Callable[[], bool], port: str
) -> None:
    result = end(demo(tree, port))
    assert result.status not in (0, 1)
    assert len(result.lines) == 1
    assert port in result.lines[0]
    assert leaves_nothing()


def pids_written(tree: pathlib.Path) -> bool:
    """Say whether the PID file is complete."""
    return any(file.read_text().count("\n") == 3 for file in tree.glob("tmp/*/app.pid"))


def pid_file_made(tree: pathlib.Path) -> bool:
    """Say whether the PID file is there: the spawner is at work."""
    return any(tree.glob("tmp/*/app.pid"))


@contextmanager
def stuck(tree: pathlib.Path, room: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the demo in a process group of its own with room for so many bytes on stdout."""
    reader, writer = os.pipe()
    os.write(writer, bytes(fcntl.fcntl(writer, F_GETPIPE_SZ) - room - len(str(tree))))
    with open(reader, "rb") as stdout:
        process = demo(tree, str(harness.free_port()), stdout=writer, group=True)
        os.close(writer)
        try:
            yield process
        except BaseException:
            with process:
                process.kill()
            raise
        stdout.read()


@pytest.mark.parametrize("number", INTERRUPTIONS)
@pytest.mark.parametrize(
    ("room", "reached"), [(140, pid_file_made), (140, pids_written), (440, pids_written)]
)
def test_a_demo_that_is_interrupted_leaves_nothing(
    tree: pathlib.Path,
    leaves_nothing: Callable[[], bool],
    number: signal.Signals,
    room: int,
    reached: Callable[[pathlib.Path], bool],
) -> None:
    """The spawner has to wait for room on stdout or, where there is more, the demo itself."""
    with stuck(tree, room) as process:
        harness.wait_for(lambda: reached(tree))
        os.killpg(process.pid, number)
    result = end(process)
    assert (result.status, result.err) == (130, b"")
    assert leaves_nothing()


def test_a_demo_that_is_interrupted_twice_leaves_nothing(
    tree: pathlib.Path, leaves_nothing: Callable[[], bool]
) -> None:
    with stuck(tree, 140) as process:
        harness.wait_for(lambda: pid_file_made(tree))
        os.killpg(process.pid, signal.SIGINT)
        harness.wait_for(lambda: signal.SIGINT in harness.state(process.pid).ignored)
        os.killpg(process.pid, signal.SIGINT)
    result = end(process)
    assert (result.status, result.err) == (130, b"")
    assert leaves_nothing()


def test_a_demo_without_a_reader_leaves_nothing(
    tree: pathlib.Path, leaves_nothing: Callable[[], bool]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = demo(tree, str(harness.free_port()), stdout=writer)
    os.close(writer)
    assert end(process).status != 0
    assert leaves_nothing()
