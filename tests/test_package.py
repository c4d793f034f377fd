"""The wheel and the sdist of `make dist`: what is in them, and what pip makes of them works."""

from __future__ import annotations

import email
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator

import pytest
from harness import OUR_VENV, ROOT
from test_install import check_spawns, spawn
from test_shape import repository_files

pytestmark = pytest.mark.long

VERSION = re.findall(r'(?m)^__version__ = "(.*)"$', (ROOT / "spawn_fcgi.py").read_text())[0]
WHEEL = f"spawn_fcgi-{VERSION}-py3-none-any.whl"
SDIST = f"spawn_fcgi-{VERSION}.tar.gz"
PAGE = "share/man/man1/spawn-fcgi.1"
# They are quick, and need the Makefile, the page, the sample application and its neighbour.
QUICK_TESTS = ("tests/test_shape.py", "tests/test_install.py", "tests/test_fastcgi.py")


def run(*command: str | pathlib.Path, cwd: pathlib.Path = ROOT) -> None:
    """Run a command with the caller's environment, where pip may look, but for what steers us."""
    ours = re.compile("MAKE|MFLAGS|PYTEST|PYTHON|SPAWN_FCGI|VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if not ours.match(name)}
    subprocess.run(command, cwd=cwd, env=environment, check=True)


@pytest.fixture(scope="module")
def dist() -> Iterator[pathlib.Path]:
    """Build both into a directory, and install the wheel as pip and as pipx do."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="sf-dist-"))
    directory.chmod(0o755)
    try:
        run("make", "-s", *OUR_VENV, "dist", f"DIST={directory}")
        run(sys.executable, "-m", "venv", directory / "venv")
        run(directory / "venv/bin/pip", "install", "-q", directory / WHEEL)
        (directory / "bin").mkdir()
        (directory / "bin/spawn-fcgi").symlink_to(directory / "venv/bin/spawn-fcgi")
        yield directory
    finally:
        shutil.rmtree(directory)


def test_the_wheel_is_the_module_the_page_and_metadata(dist: pathlib.Path) -> None:
    with zipfile.ZipFile(dist / WHEEL) as wheel:
        names = [re.sub(r"^spawn_fcgi-[^/]*\.", "", name) for name in wheel.namelist()]
    metadata = ("METADATA", "WHEEL", "RECORD", "entry_points.txt")
    expected = ["spawn_fcgi.py", f"data/data/{PAGE}", *(f"dist-info/{name}" for name in metadata)]
    assert sorted(names) == sorted(expected)


def test_the_metadata_is_that_of_the_program(dist: pathlib.Path) -> None:
    with zipfile.ZipFile(dist / WHEEL) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        metadata = email.message_from_bytes(wheel.read(name))
    assert (metadata["Name"], metadata["Version"]) == ("spawn-fcgi", VERSION)
    assert metadata["Requires-Python"] == ">=3.9"
    needed = [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]
    assert needed == ["docopt>=0.6.2"]
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_pip_installs_the_page(dist: pathlib.Path) -> None:
    assert (dist / "venv" / PAGE).read_bytes() == (ROOT / "man/spawn-fcgi.1").read_bytes()


@pytest.mark.parametrize("place", ["venv/bin", "bin"])
def test_the_command_that_pip_installs_works_there_and_by_a_link(
    dist: pathlib.Path, work: pathlib.Path, place: str
) -> None:
    command = str(dist / place / "spawn-fcgi")
    assert spawn(command, "-v").out.startswith(f"spawn-fcgi v{VERSION} ".encode())
    assert b"\n -f <command> " in spawn(command, "-h").out
    check_spawns(command)
    failed = spawn(command, "-s", work / "s", "--", "/missing")
    assert (failed.status, failed.out) == (2, b"")
    assert failed.err.startswith(b"spawn-fcgi: exec failed: /missing: ")


def test_the_sdist_is_the_repository(dist: pathlib.Path) -> None:
    with tarfile.open(dist / SDIST) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert repository_files() - names == set()
    assert [name for name in names if "__pycache__" in name or name.startswith(".venv")] == []


def test_the_tests_pass_in_an_unpacked_sdist(dist: pathlib.Path, work: pathlib.Path) -> None:
    run("tar", "-C", work, "-xzf", dist / SDIST)
    [tree] = work.iterdir()
    run(sys.executable, "-m", "venv", ".venv", cwd=tree)
    run(".venv/bin/pip", "install", "-q", ".[test]", cwd=tree)
    run(".venv/bin/python", "-m", "pytest", "-q", *QUICK_TESTS, cwd=tree)
