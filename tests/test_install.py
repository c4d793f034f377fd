"""`make install`: what it writes runs for everybody, and nothing that happens elsewhere breaks it.

Each test makes an interpreter of its own, with a docopt of its own, and tells `make` nothing but
PYTHON=, PREFIX= and DESTDIR=. No network is needed: where there is no docopt, pip gets a wheel.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import pip
import pytest
from harness import ROOT, as_user

RUNS = (0, b"spawn-fcgi v", b"")  # what start() returns
PAGES = {"share/man/man1/spawn-fcgi.1", "share/man/man7/spawn-fcgi-recipes.7"}
LOUD = 'import os; os.write(2, b"loaded")\n'
# Every Python warns of it, but only when it compiles it, as newer ones do of docopt itself.
WARNED_OF = '\n"" is ""\n'
FAILS = "#!/bin/sh\nexit 1\n"
AS_ON_A_FULL_DISK = '#!/bin/sh\nulimit -f 8\nexec "/usr/bin/${0##*/}" "$@"\n'


def make(
    work: Path, *words: str, root: Path = ROOT, env: Any = harness.ENVIRONMENT, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run make with the interpreter and the prefix of a test, unless its words name others."""
    settings = [f"PYTHON={work}/python/bin/python3", f"PREFIX={work}/prefix"]
    command = ["make", "-s", "-C", str(root), *settings, *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, **more)


def install(work: Path, *words: str, **more: Any) -> Path:
    """Run make install, which has to be silent; return the command in the prefix of the test."""
    done = make(work, "install", *words, **more)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return work / "prefix/bin/spawn-fcgi"


def start(*command: Path, **more: Any) -> tuple[int, bytes, bytes]:
    """Return status, the beginning of stdout, and stderr, by default in an empty environment."""
    how = {"env": {}, "cwd": "/", "capture_output": True, **more}
    done = subprocess.run([*command, "-v"], check=False, **how)
    return done.returncode, done.stdout[:12], done.stderr


def remove_docopt(packages: Path) -> None:
    """Remove docopt from an interpreter's site-packages."""
    for path in packages.glob("*docopt*"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def files(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return inode, time and content of all files, by their paths below a directory."""
    return {
        str(path.relative_to(directory)): (
            path.stat().st_ino,
            path.stat().st_mtime_ns,
            path.read_bytes(),
        )
        for path in directory.rglob("*")
        if path.is_file()
    }


def copy_checkout(work: Path) -> Path:
    """Return a copy of what make install needs, for every user, with a blank in its path."""
    checkout = work / "a checkout"
    shutil.copytree(ROOT / "man", checkout / "man")
    for name in ("Makefile", "spawn_fcgi.py"):
        shutil.copy(ROOT / name, checkout)
    subprocess.run(["chmod", "-R", "go+rX", checkout], check=True)
    return checkout


def as_it_is(packages: Path) -> None:
    """Leave docopt as this run has it."""


def as_a_folder(packages: Path) -> None:
    """Make docopt a package of two modules, as docopt-ng is."""
    if (packages / "docopt.py").exists():
        (packages / "docopt").mkdir(mode=0o755)
        (packages / "docopt.py").rename(packages / "docopt/inner.py")
        (packages / "docopt/__init__.py").write_text("from .inner import DocoptExit, docopt\n")


def as_a_link(packages: Path) -> None:
    """Make docopt a symbolic link, as some package managers do."""
    [docopt] = packages.glob("docopt*")
    docopt.rename(packages / f"real_{docopt.name}")
    docopt.symlink_to(packages / f"real_{docopt.name}")


@pytest.mark.parametrize(
    ("arrange", "prefix", "umask"),
    [
        pytest.param(as_it_is, "prefix", 0o022, id="docopt_as_it_is"),
        pytest.param(as_a_folder, "prefix", 0o022, id="docopt_is_a_folder"),
        pytest.param(as_a_link, "prefix", 0o022, id="docopt_is_a_link"),
        pytest.param(as_it_is, "a prefix", 0o022, id="PREFIX_has_a_blank"),
        pytest.param(as_it_is, "prefix", 0o077, id="the_umask_is_077"),
    ],
)
def test_every_user_can_run_it_once_docopt_is_gone(
    arrange: Callable[[Path], None], prefix: str, umask: int, work: Path
) -> None:
    packages = harness.interpreter(work)
    arrange(packages)
    install(work, f"PREFIX={work}/{prefix}", umask=umask)
    remove_docopt(packages)
    assert start(work / prefix / "bin/spawn-fcgi", **as_user()) == RUNS
    paths = [work / prefix, *(work / prefix).rglob("*")]
    assert [path for path in paths if not path.stat().st_mode & 0o004] == []
    assert {name for name in files(work / prefix) if name.startswith("share/")} == PAGES


def test_an_ordinary_user_needs_no_environment_and_writes_nothing_in_the_checkout(
    work: Path,
) -> None:
    harness.interpreter(work)
    checkout = copy_checkout(work)
    (work / "prefix").mkdir()
    (work / "prefix").chmod(0o777)
    before = files(checkout)
    command = install(work, root=checkout, env={}, **as_user())
    assert start(command, **as_user()) == RUNS
    assert files(checkout) == before


def test_what_is_staged_for_a_package_does_not_name_the_stage(work: Path) -> None:
    harness.interpreter(work)
    install(work, f"DESTDIR={work}/stage")
    staged = files(Path(f"{work}/stage{work}/prefix"))
    assert {"bin/spawn-fcgi", "lib/spawn-fcgi/spawn_fcgi.py", *PAGES} < {*staged}
    assert [name for name in staged if os.fsencode(work / "stage") in staged[name][2]] == []
    assert not (work / "prefix").exists()
    assert make(work, "uninstall", f"DESTDIR={work}/stage").returncode == 0
    assert files(work / "stage") == {}


def test_a_docopt_in_PYTHONPATH_is_not_the_interpreters(work: Path) -> None:
    harness.interpreter(work)
    (work / "docopt.py").write_text(LOUD)
    command = install(work, env={**harness.ENVIRONMENT, "PYTHONPATH": str(work)})
    assert start(command) == RUNS


def test_everything_is_compiled_so_that_a_start_writes_nothing(work: Path) -> None:
    harness.interpreter(work)
    command = install(work)
    before = files(work / "prefix")
    for source in (name for name in before if name.endswith(".py")):
        assert importlib.util.cache_from_source(source) in before
    assert start(command) == RUNS
    assert files(work / "prefix") == before


def test_a_new_python_recompiles_silently(work: Path) -> None:
    packages = harness.interpreter(work)
    as_a_folder(packages)
    with (packages / "docopt/__init__.py").open("a") as file:
        file.write(WARNED_OF)
    os.utime(packages / "docopt/__init__.py", (0, 0))  # older than any copy of what is compiled
    command = install(work)
    for cache in [*(work / "prefix").rglob("__pycache__")]:
        shutil.rmtree(cache)
    assert start(command) == RUNS


@pytest.mark.parametrize(
    ("place", "variable", "value"),
    [
        pytest.param("evil", "PYTHONPATH", "{work}/evil", id="PYTHONPATH"),
        pytest.param("evil", "PYTHONPATH", ":", id="the_current_directory"),
        pytest.param("evil", "PYTHONHOME", "{work}/evil", id="PYTHONHOME"),
        pytest.param("evil", "PYTHONVERBOSE", "1", id="PYTHONVERBOSE"),
        pytest.param("evil/.local/{packages}", "HOME", "{work}/evil", id="HOME"),
        pytest.param("evil/{packages}", "PYTHONUSERBASE", "{work}/evil", id="PYTHONUSERBASE"),
        pytest.param("prefix/bin", "X", "", id="the_directory_of_the_command"),
        pytest.param("python/{packages}", "X", "", id="site-packages"),
    ],
)
def test_nobody_elses_code_gets_in_by(place: str, variable: str, value: str, work: Path) -> None:
    packages = harness.interpreter(work, system_site_packages=True)  # otherwise HOME is not heeded
    command = install(work)
    directory = work / place.format(packages=packages.relative_to(work / "python"))
    directory.mkdir(parents=True, exist_ok=True)
    for module in ("docopt", "spawn_fcgi", "socket", "sitecustomize", "usercustomize"):
        (directory / f"{module}.py").write_text(LOUD)
    how: dict[str, Any] = {"cwd": work / "evil" if place == "evil" else "/"}
    how["env"] = {variable: value.format(work=work)}
    assert start(work / "python/bin/python3", command, **how) != RUNS, "no trap"
    assert start(command, **how) == RUNS


def test_a_shim_or_a_virtual_environment_in_PATH_is_not_asked(work: Path) -> None:
    (work / "bin").mkdir()
    for name in ("python3", "python"):
        (work / "bin" / name).write_text("#!/bin/sh\necho loaded >&2\n")
        (work / "bin" / name).chmod(0o755)
    path = {"PATH": f"{work}/bin:{harness.PATH}"}
    command = ["make", "-C", str(ROOT), "-n", "install", "test", "lint", f"PREFIX={work}/prefix"]
    done = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
    assert "#!/usr/bin/python3 -ISWignore" in done.stdout
    assert done.stderr == ""


def assert_refused(done: subprocess.CompletedProcess[str], *named: str) -> None:
    """Assert that make failed, with one line for each of these, and its own."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert done.returncode != 0
    assert [text in line for text, line in zip(named, lines)] == [True] * len(lines), done.stderr
    assert len(lines) == len(named), done.stderr


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        pytest.param("PYTHON=/no/python3", "/no/python3", id="no_interpreter"),
        pytest.param("PYTHON={work}/old/python/bin/python3", "older than", id="one_before_3.9"),
        pytest.param("PYTHON={work}/a b/python/bin/python3", "/a b/", id="a_blank_in_its_path"),
        pytest.param("PYTHON={work}/it's/python/bin/python3", "/it's/", id="a_quote_in_its_path"),
        pytest.param("PREFIX=here", "PREFIX=here", id="a_relative_PREFIX"),
    ],
)
def test_one_line_refuses(setting: str, named: str, work: Path) -> None:
    harness.interpreter(work)
    for name in ("a b", "it's"):
        (work / name).symlink_to(work)
    old = harness.interpreter(work / "old")
    (old / "old.pth").write_text("import sys; sys.version_info = (3, 8, 20)")
    command = install(work)
    before = files(work / "prefix")
    assert_refused(make(work, "install", setting.format(work=work)), named)
    assert files(work / "prefix") == before
    assert start(command) == RUNS


def test_its_first_line_has_at_most_255_bytes(work: Path) -> None:
    harness.interpreter(work)
    directory = work / ("x" * (255 - len(f"#!{work}//python/bin/python3 -ISWignore")))
    directory.symlink_to(work)
    command = install(work, f"PYTHON={directory}/python/bin/python3")
    assert len(command.read_bytes().splitlines()[0]) == 255
    assert start(command) == RUNS
    directory.rename(f"{directory}x")
    done = make(work, "install", f"PYTHON={directory}x/python/bin/python3")
    assert_refused(done, "the kernel refuses #!")


@pytest.mark.parametrize(
    ("broken", "content"),
    [
        pytest.param("spawn_fcgi.py", "def", id="the_script_does_not_compile"),
        pytest.param("bin/cp", AS_ON_A_FULL_DISK, id="docopt_does_not_fit_on_the_disk"),
        pytest.param("bin/install", AS_ON_A_FULL_DISK, id="the_script_does_not_fit_on_the_disk"),
        pytest.param("bin/chmod", FAILS, id="chmod_fails"),
        pytest.param("bin/mv", FAILS, id="mv_fails"),
    ],
)
def test_an_install_that_fails_leaves_the_old_command(
    broken: str, content: str, work: Path
) -> None:
    harness.interpreter(work)
    checkout = copy_checkout(work)
    command = install(work, root=checkout)
    installed = files(work / "prefix")
    (checkout / "bin").mkdir()
    (checkout / broken).write_text(content)
    (checkout / broken).chmod(0o755)
    path = {"PATH": f"{checkout}/bin:{harness.PATH}"}
    assert make(work, "install", root=checkout, env=path).returncode != 0
    assert start(command) == RUNS
    old = {name: seen for name, seen in installed.items() if name not in PAGES}
    assert old.items() <= files(work / "prefix").items()
    install(work)
    assert {*files(work / "prefix")} == {*installed}, "what the failed install left is gone"


def test_an_install_renames_files_and_keeps_none_of_an_older_one(work: Path) -> None:
    harness.interpreter(work)
    command = install(work)
    library = work / "prefix/lib/spawn-fcgi"
    old = [path.open("rb") for path in (command, *library.iterdir()) if path.is_file()]
    expected = {*files(work / "prefix")}
    for directory in (library, Path(f"{library}.new"), Path(f"{library}.old")):
        directory.mkdir(exist_ok=True)
        (directory / "old.py").touch()
    install(work)
    assert {*files(work / "prefix")} == expected
    assert [file.name for file in old if os.fstat(file.fileno()).st_nlink > 0] == []
    for file in old:
        file.close()


def no_docopt(work: Path) -> dict[str, str]:
    """Take docopt from the interpreter; return the environment in which its pip can fetch it."""
    packages = harness.interpreter(work)
    [found] = packages.glob("docopt*")
    (work / "wheels").mkdir()
    with zipfile.ZipFile(work / "wheels/docopt-0.6.2-py3-none-any.whl", "w") as wheel:
        for path in [found, *found.glob("*.py")]:
            wheel.write(path, path.relative_to(packages))
        info = {"METADATA": "Metadata-Version: 2.1\nName: docopt\nVersion: 0.6.2\n", "RECORD": ""}
        info |= {"WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
        for name, text in {**info, "LICENSE-MIT": "MIT"}.items():
            wheel.writestr(f"docopt-0.6.2.dist-info/{name}", text)
    remove_docopt(packages)
    (packages / "pip").symlink_to(Path(pip.__file__).parent)
    # To pip it is not a virtual environment's.
    (packages / "system.pth").write_text("import sys; sys.base_prefix = sys.prefix")
    (work / "pip.conf").write_text("[global]\nuser = true\nrequire-virtualenv = true\n")
    env = {"PIP_NO_INDEX": "1", "PIP_NO_CACHE_DIR": "1", "PIP_CONFIG_FILE": os.devnull}
    return {**harness.ENVIRONMENT, **env, "PIP_FIND_LINKS": str(work / "wheels")}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        pytest.param("X", "", id="without_settings"),
        pytest.param("PIP_USER", "1", id="although_PIP_USER_is_set"),
        pytest.param("PIP_REQUIRE_VIRTUALENV", "1", id="although_PIP_REQUIRE_VIRTUALENV_is_set"),
        pytest.param("PIP_CONFIG_FILE", "{work}/pip.conf", id="although_both_are_in_its_file"),
    ],
)
def test_pip_fetches_docopt_with_its_licence(variable: str, value: str, work: Path) -> None:
    env = {**no_docopt(work), variable: value.format(work=work)}
    done = make(work, "install", env=env, umask=0o077)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(work / "wheels")
    assert start(work / "prefix/bin/spawn-fcgi", **as_user()) == RUNS
    assert (work / "prefix/lib/spawn-fcgi/docopt-0.6.2.dist-info/LICENSE-MIT").exists()


def test_where_pip_cannot_fetch_docopt_its_reason_and_a_way_out_are_told(work: Path) -> None:
    env = no_docopt(work)
    command = install(work, env=env)
    for wheel in (work / "wheels").iterdir():
        wheel.unlink()
    before = files(work / "prefix")
    no_match = ("ERROR: Could not find", "ERROR: No matching", "apt-get install python3-docopt")
    assert_refused(make(work, "install", env=env), *no_match)
    [link] = (work / "python/lib").glob("python*/site-packages/pip")
    link.unlink()
    no_pip = ("No module named pip", "apt-get install python3-docopt")
    assert_refused(make(work, "install", env=env), *no_pip)
    assert files(work / "prefix") == before
    assert start(command) == RUNS


def test_uninstall_leaves_nothing_but_what_is_not_ours(work: Path) -> None:
    harness.interpreter(work)
    install(work)
    for name in ("bin/spawn-fcgi.new", "lib/spawn-fcgi.new", "lib/spawn-fcgi.old"):
        (work / "prefix" / name).touch()  # left by an install that failed
    (work / "prefix/bin/spawn-fcgi-php").touch()
    assert make(work, "uninstall").returncode == 0
    assert {*files(work / "prefix")} == {"bin/spawn-fcgi-php"}


def test_make_help_names_every_target(work: Path) -> None:
    phony = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "PHONY" in line)
    assert make(work, "help").stdout.count("make ") == len(phony.split()) - 1
