"""`pip install .` and `pipx install .` give a command; the sdist has what the tests need."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import harness

# $0 is this Python, and $1 the checkout.
SCRIPT = """
"$0" -m venv venv; venv/bin/pip install -q "$1" pipx build; venv/bin/pipx install -q "$1"
for bin in venv/bin bin; do
    $bin/spawn-fcgi -s $bin/sock -- /bin/sleep 60 | grep '^spawn-fcgi: child spawned successfully'
done
ls venv/share/man/man7/spawn-fcgi-recipes.7; venv/bin/python -m build -q --sdist -o dist "$1"
tar -tf dist/* --wildcards '*/LICENSE' '*/README.md' '*/Makefile' '*/man/*.1' '*/tests/conftest.py'
"""


def test_pip_and_pipx_give_a_command_that_does_the_same(work: pathlib.Path) -> None:
    env = {"HOME": str(work), "PIPX_HOME": f"{work}/pipx", "PIPX_BIN_DIR": f"{work}/bin"}
    command = ["sh", "-exc", SCRIPT, sys.executable, str(harness.ROOT)]
    subprocess.run(command, env={**harness.ENVIRONMENT, **env}, cwd=work, check=True)
