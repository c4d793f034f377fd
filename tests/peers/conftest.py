"""Skip the tests here, saying what to do, where they cannot run."""

from __future__ import annotations

import os

import pytest


def pytest_runtest_setup() -> None:
    """Skip a test before anything is made for it."""
    if os.getuid() != 0:
        pytest.skip("only root can run servers and init systems: run the tests as root")
    for program in ("/usr/bin/spawn-fcgi", "/usr/sbin/nginx"):
        if not os.path.exists(program):
            pytest.skip(f"{program} is missing: run `make peers`, which installs it on Debian")
