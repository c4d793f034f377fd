"""Fixtures, and where a new row goes.

    a line that is answered, taken or refused               test_command_line.py  ANSWERED, ...
    a bad value of an option                                test_command_line.py  BAD
    an address, the backlog, the socket's mode              test_socket.py  LISTENING, MODES
    what lies at the path of -s; locks                      test_socket.py  AT_THE_PATH, ...
    what lies at the path of -P; its content; full disks    test_pid_file.py  AT_THE_PATH, ...
    how a child ends, or is not executed; closed streams    test_children.py  ENDS, EXEC, STREAMS
    what the application inherits                           test_inherited.py  ENVIRONMENT, SIGNALS
    users, groups, the chroot, calls that are forbidden     test_privileges.py  IDENTITIES, ...
    `make install`; the demo                                test_install.py, test_demo.py
    the C tool beside ours; servers; recipes (Debian, root) peers/

A message goes where its cause is. What a hostile user tries has the mark `hostile` there.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import harness
import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Say what the suite's marks mean."""
    config.addinivalue_line("markers", "root: needs root: ids, chroots and mounts are root's")
    config.addinivalue_line("markers", "hostile: what a user tries who may write to a directory")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what root alone can do where we are not root, or root may not mount."""
    reason = "only root can do this: run the tests as root"
    if os.getuid() == 0 and subprocess.call(["unshare", "-m", "true"], stderr=subprocess.DEVNULL):
        reason = "this root may not mount, as in a container: run the tests elsewhere, or as a user"
    elif os.getuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def program() -> Iterator[None]:
    """Name the program under test; install ours if $SPAWN_FCGI names none. End if it is broken."""
    harness.adopt()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="sf-test-"))
    directory.chmod(0o755)
    try:
        if not harness.program:
            harness.program[:] = [harness.install(directory)]
        result = harness.run("-v")
        if result.status != 0 or not result.out.startswith(b"spawn-fcgi v"):
            last = (result.lines or ["it says nothing"])[-1]
            pytest.exit(f"{harness.program[0]} -v ends with status {result.status}: {last}", 1)
        yield
    finally:
        harness.end_children()
        shutil.rmtree(directory)


@pytest.fixture(autouse=True)
def work() -> Iterator[pathlib.Path]:
    """Return a directory that every user may enter; at the end, end what the test has spawned."""
    others = harness.my_children()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="sf-"))
    directory.chmod(0o755)
    yield directory
    harness.end_children(but=others)
    shutil.rmtree(directory)


@pytest.fixture
def port() -> str:
    """Return a free TCP port, as text."""
    return str(harness.free_port())
