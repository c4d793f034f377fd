"""The design: which files there are, what they import, and how much code the program is."""

from __future__ import annotations

import ast
import fnmatch
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator

from harness import ROOT

TOP_LEVEL = {"spawn_fcgi.py", "tests", "man", "Makefile", "README.md", "pyproject.toml"}
MAX_LINES = 455  # of the program; what goes in is to replace something
MAX_FUNCTION = 40  # lines: one screen
PROGRAM = ROOT / "spawn_fcgi.py"
TESTS = [*sorted((ROOT / "tests").glob("*.py")), ROOT / "tests/app.fcgi"]


def repository_files() -> set[str]:
    """Return the paths of all files of the repository, or of the sdist that the tree came from."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        # To git a clone of another user is unsafe, and root may run the suite in one.
        command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files"]
        return set(subprocess.check_output(command, text=True).splitlines())
    lines = (ROOT / ".gitignore").read_text().splitlines()
    ignored = [".git", "PKG-INFO", *(line.strip("/") for line in lines)]
    found = set()
    for directory, *both in os.walk(ROOT):
        for names in both:
            names[:] = [n for n in names if not any(fnmatch.fnmatch(n, i) for i in ignored)]
        found |= {os.path.relpath(os.path.join(directory, name), ROOT) for name in both[1]}
    return found


def imports(file: pathlib.Path) -> set[str]:
    """Return the top-level modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("" if node.level else str(node.module).partition(".")[0])
    return found


def is_standard(module: str) -> bool:
    """Say whether a module is of the standard library; Python 3.9 has no list of it."""
    spec = importlib.util.find_spec(module) if module else None
    origin = str(spec and spec.origin)
    below = f"{sysconfig.get_path('stdlib')}/"
    site = ("site-packages/", "dist-packages/")
    of_files = origin.startswith(below) and not origin[len(below) :].startswith(site)
    return origin in ("built-in", "frozen") or of_files


def functions() -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield all functions of the program, also the inner ones."""
    for node in ast.walk(ast.parse(PROGRAM.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def test_the_top_level_is_these_and_dotfiles() -> None:
    names = {path.partition("/")[0] for path in repository_files()}
    assert {name for name in names if not name.startswith(".")} == TOP_LEVEL


def test_the_program_imports_docopt_and_the_standard_library() -> None:
    strangers = {name for name in imports(PROGRAM) if not is_standard(name)}
    assert strangers == {"docopt"}


def test_the_tests_import_pytest_docopt_themselves_and_the_standard_library() -> None:
    known = {"pytest", "docopt", PROGRAM.stem, *(file.stem for file in TESTS)}
    imported = {(file.name, name) for file in TESTS for name in imports(file) - known}
    assert {pair for pair in imported if not is_standard(pair[1])} == set()


def test_the_program_has_not_grown() -> None:
    lines = len(PROGRAM.read_text().splitlines())
    assert lines <= MAX_LINES


def test_every_function_of_the_program_fits_on_a_screen() -> None:
    lengths = {f.name: 1 + (f.end_lineno or 0) - f.lineno for f in functions()}
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION} == {}
    assert lengths
