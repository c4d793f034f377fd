"""`make install` and `make uninstall`: which files, and a command that works for everybody.

All of this is about our own program and Makefile, whatever $SPAWN_FCGI names.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import docopt
import harness
import pytest

TAG = sys.implementation.cache_tag
INSTALLED = {
    "bin/spawn-fcgi": 0o755,
    "lib/spawn-fcgi/spawn_fcgi.py": 0o644,
    "lib/spawn-fcgi/docopt.py": 0o644,
    f"lib/spawn-fcgi/__pycache__/spawn_fcgi.{TAG}.pyc": 0o644,
    f"lib/spawn-fcgi/__pycache__/docopt.{TAG}.pyc": 0o644,
    "share/man/man1/spawn-fcgi.1": 0o644,
}
STRANGERS = ("bin/other", "lib/other/file", "lib/spawn-fcgi.conf", "share/man/man1/other.1")
NONSENSE = {
    "PYTHONPATH": "/nonexistent",
    "PYTHONHOME": "/nonexistent",
    "PYTHONINSPECT": "1",
    "PYTHONSTARTUP": "/nonexistent",
    "PYTHONUNBUFFERED": "1",
    "PYTHONVERBOSE": "2",
    "PYTHONWARNINGS": "error",
    "PYTHONIOENCODING": "nonsense",
    "PYTHONMALLOC": "debug",
    "PYTHONUTF8": "1",
}


def make(*args: str, **kwargs: Any) -> str:
    """Run make in the checkout, with an environment as on a bare machine; return its stdout."""
    # -o: whatever its age, .venv is not made anew under the tests that run in it.
    command = ["make", "-s", "-o", ".venv/ready", "-C", str(harness.ROOT), *args]
    environment = harness.clean_environment(HOME=os.environ.get("HOME", "/"))
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, **kwargs
    )
    return done.stdout


def files(directory: pathlib.Path) -> dict[str, os.stat_result]:
    """Map each file and empty directory below a directory, by its path there, to its status."""
    leaves = (p for p in directory.rglob("*") if not p.is_dir() or not any(p.iterdir()))
    return {str(path.relative_to(directory)): path.lstat() for path in leaves}


def modes(directory: pathlib.Path) -> dict[str, int]:
    """Map each file below a directory, by its path there, to its permissions."""
    return {path: status.st_mode & 0o7777 for path, status in files(directory).items()}


class Tree(NamedTuple):
    """An installed tree, and what was in it before the command was run for the first time."""

    prefix: pathlib.Path
    command: str
    python: str
    before: dict[str, os.stat_result]


@pytest.fixture(scope="module")
def tree() -> Iterator[Tree]:
    """Install into a directory that every user may enter."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="sf-install-"))
    directory.chmod(0o755)
    try:
        command = harness.install(directory)
        python = pathlib.Path(command).read_text().split()[0][2:]
        yield Tree(directory / "prefix", command, python, files(directory / "prefix"))
    finally:
        shutil.rmtree(directory)


def spawn(command: str, *args: harness.Arg, **kwargs: Any) -> harness.Result:
    """Run an installed command to its end."""
    kwargs = {"env": {}, "cwd": "/", **kwargs}
    done = subprocess.run([command, *args], capture_output=True, timeout=20, check=False, **kwargs)
    return harness.Result(done.returncode, done.stdout, done.stderr)


def check_spawns(command: str, **kwargs: Any) -> None:
    """Fail unless an installed command starts a child and says that and nothing else."""
    port = str(harness.free_port())
    result = spawn(command, "-a", "127.0.0.1", "-p", port, "--", *harness.SLEEP, **kwargs)
    assert (result.status, result.err) == (0, b"")
    assert result.out == b"spawn-fcgi: child spawned successfully: PID: %d\n" % result.pids[0]
    assert harness.exe(result.pids[0]).endswith("sleep")


def of_docopt() -> dict[str, int]:
    """Return the installed files, with their modes, of the docopt here, also if it is docopt-ng."""
    file = pathlib.Path(docopt.__file__)
    package = "docopt/" if file.name == "__init__.py" else ""
    names = [path.name for path in file.parent.iterdir() if path.is_file()] if package else []
    sources = names or [file.name]
    compiled = [f"__pycache__/{name[:-3]}.{TAG}.pyc" for name in sources if name.endswith(".py")]
    return {f"lib/spawn-fcgi/{package}{name}": 0o644 for name in [*sources, *compiled]}


def test_install_writes_exactly_these_files(tree: Tree) -> None:
    ours = {path: mode for path, mode in INSTALLED.items() if "docopt" not in path}
    found = {path: status.st_mode & 0o7777 for path, status in tree.before.items()}
    assert found == {**ours, **of_docopt()}


@pytest.mark.parametrize("name", ["usr", "us r"])
def test_a_package_built_with_destdir_works_once_it_is_in_its_place(
    tree: Tree, work: pathlib.Path, name: str
) -> None:
    prefix, package = work / name, work / "package"
    make("install", f"PREFIX={prefix}", f"DESTDIR={package}", f"PYTHON={tree.python}")
    assert os.listdir(work) == ["package"]
    assert modes(package) == {f"{prefix}/{path}"[1:]: mode for path, mode in INSTALLED.items()}
    telltales = [path for path in files(package) if bytes(package) in (package / path).read_bytes()]
    assert telltales == []
    os.rename(f"{package}{prefix}", prefix)
    before = files(prefix)
    check_spawns(f"{prefix}/bin/spawn-fcgi")
    assert files(prefix) == before


def test_a_cautious_umask_of_the_installer_keeps_nobody_from_the_files(
    tree: Tree, work: pathlib.Path
) -> None:
    prefix = work / "usr"
    make("install", f"PREFIX={prefix}", f"PYTHON={tree.python}", umask=0o077)
    assert modes(prefix) == INSTALLED
    closed = [str(p) for p in prefix.rglob("*") if p.is_dir() and p.stat().st_mode & 0o055 != 0o055]
    assert closed == []


@pytest.mark.parametrize("who", ["the installer", "nobody"])
@pytest.mark.parametrize("environment", [{}, NONSENSE], ids=["none", "nonsense"])
def test_the_installed_command_works_in_this_environment(
    tree: Tree, environment: dict[str, str], who: str
) -> None:
    user = harness.as_user() if who == "nobody" else {}
    check_spawns(tree.command, env=environment, **user)


def test_modules_in_the_current_directory_are_not_the_commands(
    tree: Tree, work: pathlib.Path
) -> None:
    for name in ("docopt", "spawn_fcgi", "socket", "re", "sitecustomize", "usercustomize"):
        (work / f"{name}.py").write_text("raise SystemExit('not mine')")
    before = files(work)
    check_spawns(tree.command, cwd=work, env={"PYTHONPATH": ".", "HOME": str(work)})
    assert files(work) == before


def test_running_the_command_writes_nothing_into_its_tree(tree: Tree) -> None:
    check_spawns(tree.command)
    assert spawn(tree.command, "--help").status == 0
    assert spawn(tree.command, "-x").status == 255

    def written(listing: dict[str, os.stat_result]) -> dict[str, tuple[int, int, int]]:
        return {path: (s.st_ino, s.st_size, s.st_mtime_ns) for path, s in listing.items()}

    assert written(files(tree.prefix)) == written(tree.before)


def test_uninstall_removes_what_install_wrote_and_leaves_a_strangers_files(
    tree: Tree, work: pathlib.Path
) -> None:
    prefix = work / "package/usr"
    for name in STRANGERS:
        (prefix / name).parent.mkdir(parents=True, exist_ok=True)
        (prefix / name).write_text("mine")
    places = ["PREFIX=/usr", f"DESTDIR={work / 'package'}"]
    make("install", *places, f"PYTHON={tree.python}")
    assert modes(prefix).keys() == {*STRANGERS, *INSTALLED}
    make("uninstall", *places)
    assert modes(prefix).keys() == set(STRANGERS)
    assert {(prefix / name).read_text() for name in STRANGERS} == {"mine"}
    make("uninstall", *places)


def test_install_over_an_older_install_replaces_it(tree: Tree, work: pathlib.Path) -> None:
    prefix = work / "usr"
    for name in INSTALLED:
        (prefix / name).parent.mkdir(parents=True, exist_ok=True)
        (prefix / name).write_text("old")
    make("install", f"PREFIX={prefix}", f"PYTHON={tree.python}")
    assert modes(prefix) == INSTALLED
    check_spawns(f"{prefix}/bin/spawn-fcgi")


def test_make_help_lists_every_target_and_no_others() -> None:
    phony = re.findall(r"^\.PHONY:(.*)", (harness.ROOT / "Makefile").read_text(), re.M)
    targets = set(" ".join(phony).split())
    assert len(phony) == 1
    assert set(re.findall(r"\bmake (\w+)", make("help"))) | {"help"} == targets


def test_the_version_is_in_one_place(tree: Tree) -> None:
    version = spawn(tree.command, "-v").out.decode().split()[1]
    pip = [str(harness.ROOT / ".venv/bin/python"), "-m", "pip", "show", "spawn-fcgi"]
    shown = subprocess.run(pip, check=True, capture_output=True, text=True).stdout
    package = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)["Version"]
    assert version == f"v{package}", "or .venv is older than the version: rm .venv/ready"
    for name in ("pyproject.toml", "Makefile", "README.md", "man/spawn-fcgi.1"):
        assert package not in (harness.ROOT / name).read_text()


def test_main_takes_its_arguments_from_python_too() -> None:
    call = "import spawn_fcgi; raise SystemExit(spawn_fcgi.main(['--version']))"
    command = [sys.executable, "-c", call]
    done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stdout[:13]) == (0, b"spawn-fcgi v1"), done.stderr
