"""Fixtures: the program under test, a directory of the test's own, and an end to all children."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import harness
import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Say what the suite's marks mean."""
    config.addinivalue_line("markers", "root: needs root: ids, chroots and mounts are root's")
    config.addinivalue_line(
        "markers", "differs(what): the C tool fails here; a number is one of README.md"
    )
    config.addinivalue_line("markers", "long: takes minutes; `make matrix` leaves it out")
    config.addinivalue_line(
        "markers", "alone: a matter of milliseconds, so little else is to run beside it"
    )


@pytest.fixture(scope="session", autouse=True)
def program() -> Iterator[None]:
    """Name the program under test; install ours if $SPAWN_FCGI names none."""
    harness.become_subreaper()
    harness.reset_signals()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="sf-test-"))
    directory.chmod(0o755)
    try:
        if not harness.program:
            harness.program[:] = [harness.install(directory)]
        yield
    finally:
        harness.end_children()
        shutil.rmtree(directory)


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """End what a test has spawned, whether it passed or not."""
    others = harness.my_children()
    yield
    harness.end_children(but=others)


@pytest.fixture
def work() -> Iterator[pathlib.Path]:
    """Return a directory of the test's own, with a short path that every user may enter."""
    others = harness.my_children()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="sf-"))
    directory.chmod(0o755)
    yield directory
    harness.end_children(but=others)  # they may be writing to it
    shutil.rmtree(directory)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs root without root; on the C tool, expect the listed failures."""
    c_tool = os.environ.get("SPAWN_FCGI", "").split()[:1] == [harness.C_TOOL]
    for item in items:
        if item.get_closest_marker("root") and os.getuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root: run the suite as root"))
        differs = item.get_closest_marker("differs")
        if c_tool and differs:
            reason = f"the C tool differs (README.md): {differs.args[0]}"
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
