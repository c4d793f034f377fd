"""`make install`: what it writes runs for everybody, and nothing that happens elsewhere breaks it.

Each test makes an interpreter of its own, with a docopt of its own, and tells `make` nothing but
PYTHON=, PREFIX= and DESTDIR=. No network is needed: where there is no docopt, pip gets a wheel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import harness
import pip
import pytest
from harness import ROOT, as_user

RUNS = (0, b"spawn-fcgi v", b"")  # what start() returns
PAGES = {"share/man/man1/spawn-fcgi.1", "share/man/man7/spawn-fcgi-recipes.7"}
LOUD = 'import os; os.write(2, b"loaded")\n'
FAILS = "#!/bin/sh\nexit 1\n"  # as a command, and when Python compiles it


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


def start(command: Path, **more: Any) -> tuple[int, bytes, bytes]:
    """Ask for the version, with an empty environment; return how that ends, see RUNS."""
    done = subprocess.run([command, "-v"], env={}, capture_output=True, check=False, **more)
    return done.returncode, done.stdout[:12], done.stderr


def files(directory: Path) -> dict[str, int]:
    """Return when each file was changed, replaced or renamed, by its path below a directory."""
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.stat().st_ctime_ns for path in paths}


def copy_checkout(work: Path) -> Path:
    """Return a copy of what make install needs, for every user, with a blank in its path."""
    checkout = work / "a checkout"
    checkout.mkdir()
    subprocess.run(["cp", "-R", "Makefile", "man", "spawn_fcgi.py", checkout], cwd=ROOT, check=True)
    subprocess.run(["chmod", "-R", "go+rX", checkout], check=True)
    return checkout


def test_an_ordinary_user_installs_what_all_can_run_once_docopt_is_gone(work: Path) -> None:
    packages = harness.interpreter(work)
    docopt = packages / "docopt"
    if not docopt.exists():  # docopt-ng is a package already
        docopt.mkdir(mode=0o755)
        (packages / "docopt.py").rename(docopt / "inner.py")
        (docopt / "__init__.py").write_text("from .inner import DocoptExit, docopt\n")
    docopt.rename(packages / "real_docopt")
    docopt.symlink_to("real_docopt")  # as some package managers do
    prefix = work / "home/a prefix"
    prefix.parent.mkdir()
    prefix.parent.chmod(0o777)
    checkout = copy_checkout(work)
    (checkout / "docopt.py").write_text(LOUD)  # it is not the interpreter's
    before = files(checkout)
    install(work, f"PREFIX={prefix}", root=checkout, env={}, umask=0o077, **as_user())
    assert files(checkout) == before
    subprocess.run(["rm", "-r", *packages.glob("*docopt*")], check=True)
    assert start(prefix / "bin/spawn-fcgi", **as_user(65533)) == RUNS
    paths = [prefix, *prefix.rglob("*")]
    assert [path for path in paths if not path.stat().st_mode & 0o004] == []


def test_nothing_names_DESTDIR_and_uninstall_leaves_only_what_is_not_ours(work: Path) -> None:
    harness.interpreter(work)
    stage = work / "stage"
    install(work, f"DESTDIR={stage}")
    assert not (work / "prefix").exists()
    prefix = Path(f"{stage}{work}/prefix")
    names = files(prefix)
    assert {"bin/spawn-fcgi", "lib/spawn-fcgi/spawn_fcgi.py", *PAGES} < {*names}
    assert [name for name in names if bytes(stage) in (prefix / name).read_bytes()] == []
    for left in ("bin/spawn-fcgi.new", "lib/spawn-fcgi.new", "lib/spawn-fcgi.old"):
        (prefix / left).touch()  # by an install that failed
    (prefix / "bin/spawn-fcgi-php").touch()
    assert make(work, "uninstall", f"DESTDIR={stage}").returncode == 0
    assert {*files(prefix)} == {"bin/spawn-fcgi-php"}


def test_a_start_writes_nothing_and_a_new_python_recompiles_silently(work: Path) -> None:
    harness.interpreter(work)
    checkout = copy_checkout(work)
    with (checkout / "spawn_fcgi.py").open("a") as file:
        file.write('\n"" is ""\n')  # every Python warns of it, but only when it compiles it
    command = install(work, root=checkout)
    before = files(work / "prefix")
    assert start(command) == RUNS
    assert files(work / "prefix") == before
    for cache in [*(work / "prefix").rglob("__pycache__")]:
        shutil.rmtree(cache)
    assert start(command) == RUNS


@pytest.mark.hostile
@pytest.mark.parametrize("words", ["-- /bin/sleep 60", "-n -- /bin/true"], ids=["fork", "-n"])
@pytest.mark.parametrize(
    ("place", "variable", "value"),
    [
        pytest.param("evil", "PYTHONPATH", "{work}/evil", id="PYTHONPATH"),
        pytest.param("evil", "PYTHONPATH", ":", id="the_current_directory"),
        pytest.param("evil", "PYTHONHOME", "{work}/evil", id="PYTHONHOME"),
        pytest.param("evil/.local/{packages}", "HOME", "{work}/evil", id="HOME"),
        pytest.param("evil/{packages}", "PYTHONUSERBASE", "{work}/evil", id="PYTHONUSERBASE"),
        pytest.param("prefix/bin", "X", "", id="the_directory_of_the_command"),
        pytest.param("python/{packages}", "X", "", id="site-packages"),
    ],
)
def test_nobody_elses_code_gets_in_by(
    place: str, variable: str, value: str, words: str, work: Path, monkeypatch: Any
) -> None:
    packages = harness.interpreter(work, system_site_packages=True)  # otherwise HOME is not heeded
    command = install(work)
    (work / "evil").mkdir()
    directory = work / place.format(packages=packages.relative_to(work / "python"))
    directory.mkdir(parents=True, exist_ok=True)
    for module in ("docopt", "spawn_fcgi", "socket", "sitecustomize", "usercustomize"):
        (directory / f"{module}.py").write_text(LOUD)
    caller: dict[str, Any] = {"cwd": work / "evil", "env": {variable: value.format(work=work)}}
    monkeypatch.setattr(harness, "program", [work / "python/bin/python3", command])
    trapped = harness.run("-s", "trapped", *words.split(), **caller)
    assert (trapped.status, trapped.err) != (0, b""), "the trap does not work"
    monkeypatch.setattr(harness, "program", [command])
    result = harness.run("-s", "s", *words.split(), **caller)
    assert (result.status, result.err) == (0, b""), result


def test_what_PATH_and_PYTHONPATH_lead_to_is_not_asked(work: Path) -> None:
    for name in ("python3", "python", "docopt.py"):  # shims, or a virtual environment's
        (work / name).write_text("#!/bin/sh\necho loaded >&2\n")
        (work / name).chmod(0o755)
    env = {"PATH": f"{work}:{harness.PATH}", "PYTHONPATH": str(work)}
    command = ["make", "-C", str(ROOT), "-n", "install", "test", "lint", f"PREFIX={work}/prefix"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert "#!/usr/bin/python3 -ISWignore" in done.stdout
    assert f"{work}/docopt.py" not in done.stdout
    assert done.stderr == ""


def assert_refused(done: subprocess.CompletedProcess[str], *named: str) -> None:
    """Assert that make failed, with one line for each of these, and its own."""
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(lines) == len(named), done.stderr
    for text, line in zip(named, lines):
        assert text in line


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        pytest.param("PYTHON=/no/python3", "/no/python3", id="no_interpreter"),
        pytest.param("PYTHON={work}/old/python/bin/python3", "older than", id="one_before_3.9"),
        pytest.param("PYTHON={work}/a b/python/bin/python3", "/a b/", id="a_blank_in_its_path"),
        pytest.param("PYTHON={work}/it's/python/bin/python3", "/it's/", id="a_quote_in_its_path"),
        pytest.param(
            "PYTHON={work}/{too_long}/python/bin/python3", "/xx", id="a_line_of_256_bytes"
        ),
        pytest.param("PREFIX=here", "PREFIX=here", id="a_relative_PREFIX"),
    ],
)
def test_one_line_refuses(setting: str, named: str, work: Path) -> None:
    harness.interpreter(work)
    old = harness.interpreter(work / "old")
    (old / "old.pth").write_text("import sys; sys.version_info = (3, 8, 20)")
    too_long = "x" * (256 - len(f"#!{work}//python/bin/python3 -ISWignore"))
    longest = too_long[1:]
    for name in ("a b", "it's", too_long, longest):
        (work / name).symlink_to(work)
    command = install(work, f"PYTHON={work}/{longest}/python/bin/python3")
    before = files(work / "prefix")
    assert_refused(make(work, "install", setting.format(work=work, too_long=too_long)), named)
    assert files(work / "prefix") == before
    assert start(command) == RUNS


@pytest.mark.parametrize(
    "broken", ["bin/cp", "bin/install", "spawn_fcgi.py", "bin/chmod", "bin/mv"]
)
def test_a_failed_install_harms_nothing_and_the_next_one_tidies_up(broken: str, work: Path) -> None:
    harness.interpreter(work)
    checkout = copy_checkout(work)
    command = install(work, root=checkout)
    installed = files(work / "prefix")
    (checkout / "bin").mkdir()
    (checkout / broken).write_text(FAILS)
    (checkout / broken).chmod(0o755)
    path = {"PATH": f"{checkout}/bin:{harness.PATH}"}
    assert make(work, "install", root=checkout, env=path).returncode != 0
    assert start(command) == RUNS
    old = {name: changed for name, changed in installed.items() if name not in PAGES}
    assert old.items() <= files(work / "prefix").items()

    os.link(command, work / "link")
    for left in ("spawn-fcgi", "spawn-fcgi.new", "spawn-fcgi.old"):
        directory = work / "prefix/lib" / left
        directory.mkdir(exist_ok=True)
        (directory / "left.py").touch()
    install(work)
    assert files(work / "prefix").keys() == installed.keys()
    assert not command.samefile(work / "link"), "written to, not replaced"


def test_without_docopt_pip_fetches_it_with_its_licence_or_says_why_not(work: Path) -> None:
    packages = harness.interpreter(work)
    info = packages / "docopt-0.6.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: docopt\nVersion: 0.6.2\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (info / "RECORD").touch()
    (info / "LICENSE-MIT").touch()
    archive = shutil.make_archive(f"{work}/docopt", "zip", packages)
    Path(archive).rename(work / "docopt-0.6.2-py3-none-any.whl")
    subprocess.run(["rm", "-r", *packages.glob("*docopt*")], check=True)
    (packages / "pip").symlink_to(Path(pip.__file__).parent)
    # To pip it is not a virtual environment's.
    (packages / "system.pth").write_text("import sys; sys.base_prefix = sys.prefix")
    (work / "pip.conf").write_text("[global]\nuser = true\nrequire-virtualenv = true\n")
    env = {"PIP_NO_INDEX": "1", "PIP_NO_CACHE_DIR": "1", "PIP_FIND_LINKS": str(work)}
    env |= {"PIP_USER": "1", "PIP_REQUIRE_VIRTUALENV": "1", "PIP_CONFIG_FILE": f"{work}/pip.conf"}
    env |= harness.ENVIRONMENT
    command = install(work, env=env, umask=0o077)
    before = files(work / "prefix")
    (packages / "pip").unlink()
    no_pip = ("No module named pip", "apt-get install python3-docopt")
    assert_refused(make(work, "install", env=env), *no_pip)
    assert files(work / "prefix") == before
    assert "lib/spawn-fcgi/docopt-0.6.2.dist-info/LICENSE-MIT" in before
    assert start(command, **as_user()) == RUNS
