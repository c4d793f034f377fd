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
    """Say what the suite's mark means."""
    config.addinivalue_line("markers", "root: needs root: ids, chroots and mounts are root's")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what root alone can do where we are not root."""
    for item in items:
        if item.get_closest_marker("root") and os.getuid() != 0:
            item.add_marker(pytest.mark.skip(reason="only root can do this: run the tests as root"))


@pytest.fixture(scope="session", autouse=True)
def program() -> Iterator[None]:
    """Name the program under test; install ours if $SPAWN_FCGI names none."""
    harness.adopt()
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


@pytest.fixture
def port() -> str:
    """Return a free TCP port, as text."""
    return str(harness.free_port())
