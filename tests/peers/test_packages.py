"""`pip install .` and `pipx install .` give a command; the sdist has what the tests need."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tarfile

import harness
from harness import ROOT


def test_pip_and_pipx_give_a_command_that_does_the_same(work: pathlib.Path) -> None:
    def call(*command: pathlib.Path | str) -> str:
        env = {**harness.ENVIRONMENT, "HOME": str(work), "PIPX_HOME": f"{work}/pipx"}
        env["PIPX_BIN_DIR"] = f"{work}/bin"
        return subprocess.check_output(command, env=env, cwd=work, text=True)

    call(sys.executable, "-m", "venv", work / "venv")
    call(work / "venv/bin/pip", "install", "-q", ROOT, "pipx", "build")
    call(work / "venv/bin/pipx", "install", "-q", str(ROOT))
    for number, command in enumerate((work / "venv/bin/spawn-fcgi", work / "bin/spawn-fcgi")):
        said = call(command, "-s", work / str(number), "--", *harness.SLEEP)
        assert said.startswith("spawn-fcgi: child spawned successfully: PID: ")
    assert (work / "venv/share/man/man7/spawn-fcgi-recipes.7").exists()
    call(work / "venv/bin/python", "-m", "build", "-q", "--sdist", "-o", work / "dist", str(ROOT))
    [sdist] = (work / "dist").iterdir()
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "Makefile", "man/spawn-fcgi.1", "tests/conftest.py"} < names
