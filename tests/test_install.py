"""`make install`: what it writes, and that a start from it needs nothing else; no network is asked.

Where there is no docopt, pip takes it from a folder of the test's own.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import docopt
import harness
import pytest
from harness import ROOT, as_user

BIN = "prefix/bin/spawn-fcgi"


def make(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run make in the checkout, where pip can reach no registry."""
    environment = {**harness.ENVIRONMENT, "PIP_NO_INDEX": "1", "HOME": "/nonexistent", **env}
    command = ["make", "-s", "-C", str(ROOT), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def version(command: pathlib.Path | str) -> tuple[int, bytes]:
    """Return status and stderr of a start by another user, with an empty environment, as cron's."""
    done = subprocess.run(
        [command, "-v"], env={}, cwd="/", capture_output=True, check=False, **as_user()
    )
    assert done.stdout.startswith(b"spawn-fcgi v") or done.returncode != 0
    return done.returncode, done.stderr


def own_docopt(work: pathlib.Path) -> tuple[list[str], dict[str, str]]:
    """Return what makes make fetch docopt with the pip of this run, and where pip finds it."""
    (work / "wheels").mkdir()
    module = pathlib.Path(docopt.__file__)
    with zipfile.ZipFile(work / "wheels/docopt-0.6.2-py3-none-any.whl", "w") as wheel:
        for file in module.parent.glob("*.py") if module.name == "__init__.py" else [module]:
            wheel.write(file, f"docopt/{file.name}" if module.name == "__init__.py" else file.name)
        info = {"METADATA": "Metadata-Version: 2.1\nName: docopt\nVersion: 0.6.2\n", "RECORD": ""}
        info |= {"WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
        for name, text in info.items():
            wheel.writestr(f"docopt-0.6.2.dist-info/{name}", text)
    own = f"{work}/prefix/lib/spawn-fcgi/docopt"
    settings = [f"PREFIX={work}/prefix", f"INTERPRETER={sys.executable}", f"DOCOPT_DIR={own}"]
    return settings, {"PIP_FIND_LINKS": str(work / "wheels")}


@pytest.mark.parametrize("prefix", ["prefix", "a prefix"])
def test_it_runs_for_every_user_and_goes_again(prefix: str, work: pathlib.Path) -> None:
    command = harness.install(work, PREFIX=work / prefix).replace(BIN, f"{prefix}/bin/spawn-fcgi")
    assert version(command) == (0, b"")
    assert sorted(path.name for path in (work / prefix).rglob("spawn-fcgi*.[17]")) == [
        "spawn-fcgi-recipes.7",
        "spawn-fcgi.1",
    ]
    assert make("uninstall", f"PREFIX={work / prefix}").returncode == 0
    assert [path for path in (work / prefix).rglob("*") if not path.is_dir()] == []


def test_what_is_staged_for_a_package_names_no_place_of_the_staging(work: pathlib.Path) -> None:
    harness.install(work, PREFIX="/opt/sf", DESTDIR=work / "stage")
    files = [path for path in (work / "stage/opt/sf").rglob("*") if path.is_file()]
    assert {"spawn-fcgi", "spawn_fcgi.py"} < {path.name for path in files}
    assert [path for path in files if os.fsencode(work / "stage") in path.read_bytes()] == []


def test_docopt_is_fetched_beside_the_library_only_where_there_is_none(work: pathlib.Path) -> None:
    settings, env = own_docopt(work)
    done = make("install", *settings, **env)
    assert (done.returncode, done.stderr.count("\n")) in [(0, 0), (0, 1)], done  # 1: a warning
    own = work / "prefix/lib/spawn-fcgi/docopt"
    assert (own / "docopt-0.6.2.dist-info").is_dir()
    for cache in [*own.rglob("__pycache__")]:  # as after the machine's Python has moved on
        shutil.rmtree(cache)
    assert subprocess.run([work / BIN, "-v"], capture_output=True, check=True).stderr == b""
    (work / "empty").mkdir()
    again = make("install", *settings, PIP_FIND_LINKS=str(work / "empty"))
    assert again.returncode == 0, "what is there is not fetched again"
    harness.install(work)
    assert not own.exists(), "the interpreter has it now"
    assert version(work / BIN) == (0, b"")


NO_DOCOPT = [f"INTERPRETER={sys.executable}", "DOCOPT_DIR={work}/prefix/lib/spawn-fcgi/docopt"]


def test_an_install_that_fails_says_why_and_leaves_the_old_command(work: pathlib.Path) -> None:
    harness.install(work)
    before = {path: path.lstat() for path in (work / "prefix").rglob("*") if path.is_file()}
    for name, settings, named in [
        ("no Python", ["PYTHON=/no/python"], "/no/python"),
        ("a Python that fails", ["PYTHON=/bin/false"], "/bin/false"),
        ("a Python with a blank", ["PYTHON=/a b/python3"], "/a b/python3"),
        ("no #! line takes a blank", ["INTERPRETER=/a b/python3"], "/a b/python3"),
        ("a relative prefix", ["PREFIX=here"], "PREFIX"),
        ("a prefix that cannot be made", ["PREFIX=/dev/null"], "/dev/null"),
        ("no docopt to be had", NO_DOCOPT, "python3-docopt"),
    ]:
        done = make("install", f"PREFIX={work}/prefix", *(s.format(work=work) for s in settings))
        lines = [
            line for line in done.stderr.splitlines() if line.startswith(("make: ", "mkdir: "))
        ]
        assert done.returncode != 0, name
        assert named in lines[0], (name, done)
        assert [line for line in lines[1:] if not line.startswith("make: ***")] == [], name
        found = {path: path.lstat() for path in (work / "prefix").rglob("*") if path.is_file()}
        assert found == before, name
    assert version(work / BIN) == (0, b"")


def test_a_python_that_others_may_not_execute_gets_a_warning(work: pathlib.Path) -> None:
    (work / "closed").mkdir(mode=0o700)
    (work / "closed/python3").symlink_to(sys.executable)
    done = make(
        "install", f"PREFIX={work}/prefix", f"INTERPRETER={work}/closed/python3", "DOCOPT_DIR=/"
    )
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert f"{work}/closed" in done.stderr


def test_make_help_names_every_target() -> None:
    phony = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "PHONY" in line)
    assert make("help").stdout.count("make ") == len(phony.split()) - 1
