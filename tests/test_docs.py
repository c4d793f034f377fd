"""README.md and the man page are true of the program: options, messages, statuses and commands.

What the page has people type is typed in test_recipes.py.
"""

from __future__ import annotations

import ast
import os
import pathlib
import re
import shlex
import shutil
import socket
import string
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import harness
import pytest
from test_recipes import PAGE_FILE, README, RECIPES, plain

PAGE = PAGE_FILE.read_text().replace("\\-", "-").replace("\\&", "")
SECTIONS = dict(re.findall(r"^\.Sh (.+)\n((?:(?!\.Sh ).*\n)*)", PAGE, re.M))
MAKEFILE = (harness.ROOT / "Makefile").read_text()


def readme_blocks() -> list[str]:
    """Return the README's sh blocks."""
    return re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)


def test_the_examples_of_the_readme_are_in_the_page_verbatim() -> None:
    examples = [block for block in readme_blocks() if "spawn-fcgi" in block]
    assert len(examples) == 3
    assert set(examples) <= {block.text for block in RECIPES["One line each"]}


def test_every_other_command_of_the_readme_is_the_demo_the_suite_or_the_install() -> None:
    others = [block for block in readme_blocks() if "spawn-fcgi" not in block]
    # test_demo.py runs the one, this is the other, and test_recipes.py types the last.
    assert others == [
        "make demo\nmake test\n",
        "apt-get install -y make python3-venv\nmake install\n",
    ]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|^)make ([a-z ]+)", README, re.M))))
def test_a_make_command_of_the_readme_has_recipes(target: str) -> None:
    dry_run = ["make", "-n", "-C", str(harness.ROOT), *target.split(), f"PYTHON={sys.executable}"]
    environment = harness.clean_environment()  # without the MAKEFLAGS of `make test`
    done = subprocess.run(dry_run, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_every_make_variable_of_the_readme_is_one_of_the_makefile() -> None:
    named = set(re.findall(r"`([A-Z]+)=`", README))
    assert {"PREFIX", "DESTDIR"} <= named
    assert not [name for name in named if f"$({name})" not in MAKEFILE]


def test_the_readme_has_a_line_for_each_number_by_which_the_tests_call_a_difference() -> None:
    numbers = re.findall(r"^\| (\d+) \|", README, re.M)
    assert numbers == [str(number) for number in range(1, 14)]


def test_mandoc_has_nothing_to_say_of_the_page() -> None:
    assert shutil.which("mandoc"), "mandoc is missing: apt-get install mandoc"
    lint = ["mandoc", "-Tlint", "-W", "style", str(PAGE_FILE)]
    done = subprocess.run(lint, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_sentence_of_the_page_starts_a_line() -> None:
    text = re.sub(r"^\.Bd -literal.*\n(?:.*\n)*?\.Ed$", "", PAGE, flags=re.M)
    assert not re.findall(r"^[^.].*[a-z)][.:;?!] +[A-Z].*$", text, re.M)


def test_the_page_has_the_sections_of_a_command_in_their_order() -> None:
    assert " ".join(SECTIONS) == (
        "NAME SYNOPSIS DESCRIPTION ENVIRONMENT EXIT STATUS EXAMPLES DIAGNOSTICS"
        " SEE ALSO HISTORY CAVEATS"
    )


def ours(*args: harness.Arg) -> harness.Result:
    """Run spawn_fcgi.py itself, from the checkout."""
    command = [sys.executable, "-I", str(harness.ROOT / "spawn_fcgi.py"), *args]
    environment = harness.clean_environment()
    done = subprocess.run(
        command, cwd="/", env=environment, capture_output=True, timeout=20, check=False
    )
    return harness.Result(done.returncode, done.stdout, done.stderr)


def options_of(text: str, item: str) -> dict[str, tuple[str, str]]:
    """Map the options of items, each a head and a text, to their argument and that text."""
    options = {}
    for head, rest in re.findall(item, text, re.M):
        words = re.sub(r"\bFl (\S+)", r"-\1", head).replace(",", " ").split()
        flags = [word for word in words if word.startswith("-")]
        argument = words[-1].strip("<>") if words[-1] not in flags else ""
        options.update(dict.fromkeys(flags, (argument, rest)))
    return options


def page_options(text: str) -> dict[str, tuple[str, str]]:
    """Map the options that a part of the page explains to their argument and explanation."""
    return options_of(text, r"^\.It (Fl .*)\n((?:(?!\.It|\.El).*\n)*)")


def help_options(text: str) -> dict[str, tuple[str, str]]:
    """Map the options that a part of the help explains to their argument and explanation."""
    return options_of(text, r"^ (-\S+(?: \S+)*)  +(.*)")


def test_the_page_explains_the_options_of_the_help_and_no_others() -> None:
    page_parts = SECTIONS["DESCRIPTION"].split("These are for root.\n")
    help_parts = ours("--help").out.decode().split("Options for root only:\n")
    assert len(page_parts) == len(help_parts) == 2
    for page_part, help_part in zip(page_parts, help_parts):
        explained, offered = page_options(page_part), help_options(help_part)
        assert {o: explained[o][0] for o in explained} == {o: offered[o][0] for o in offered}
        assert len(offered) >= 6


def test_the_page_has_every_number_that_the_help_has() -> None:
    explained = page_options(SECTIONS["DESCRIPTION"])
    offered = help_options(ours("--help").out.decode())
    numbers = {option: re.findall(r"-?\d[\d.]*\b", offered[option][1]) for option in offered}
    assert any(numbers.values()), "the help has lost its defaults"
    assert not [(o, n) for o in numbers for n in numbers[o] if n not in explained[o][1]]


def offered_letters() -> str:
    """Return the letters of the options of the help, sorted."""
    options = help_options(ours("--help").out.decode())
    return "".join(sorted(option[1] for option in options if len(option) == 2))


def test_the_parser_knows_the_options_of_the_help_and_no_others() -> None:
    said = {letter: ours(f"-{letter}").err for letter in string.ascii_letters + string.digits + "?"}
    known = [letter for letter, error in said.items() if b"not recognized" not in error]
    assert "".join(sorted(known)) == offered_letters()


def test_the_synopsis_of_the_page_has_every_option_of_one_letter() -> None:
    flags = "".join(re.findall(r"Fl ([^\s-]+)", SECTIONS["SYNOPSIS"]))
    assert "".join(sorted(set(flags))) == offered_letters()


def test_the_synopsis_of_the_readme_has_every_option_but_help_and_version() -> None:
    [synopsis] = re.findall(r"^    spawn-fcgi ((?:.*\n)*?)\n", README, re.M)
    flags = "".join(re.findall(r"(?<!\w)-(\w+)", synopsis))
    assert "".join(sorted([*set(flags), *"?hv"])) == offered_letters()
    page = re.sub(r"Fl ", "-", SECTIONS["SYNOPSIS"].partition("\n.Nm\n.Op Ar")[0])
    for option, argument in re.findall(r"\[-(\w) (\w+)\]", synopsis):
        assert f".Op -{option} Ar {argument}\n" in page


class Outcome(NamedTuple):
    """Arguments, and the status and message that they lead to in the table of EXIT STATUS."""

    args: str
    status: int
    row: str
    message: str


OUTCOMES = [
    Outcome("-s {}/s -- /bin/sleep 60", 0, "0", "child spawned successfully: PID: pid"),
    Outcome("-s {}/s -f 'sh -c \"exit 7\"'", 7, "n", "child exited with: n"),
    Outcome("-s {}/s -f {}/missing", 127, "n", "child exited with: n"),
    Outcome("-s {}/s -f 'sh -c \"kill -9 $$\"'", 1, "1", "child signaled: signal"),
    Outcome("-s {}/s -- {}/missing", 2, "errno", "exec failed: app: reason"),
    Outcome("-s {}/s -- {}/program", 8, "errno", "exec failed: app: reason"),
    Outcome("-s {}/s -- {}/text", 13, "errno", "exec failed: app: reason"),
    Outcome("-n -s {}/s -- {}/text", 13, "errno", "exec failed: app: reason"),
    Outcome("-s {}/busy -- /bin/sleep 60", 255, "255", "what failed: reason"),
]


def table() -> dict[str, tuple[str, str]]:
    """Map the messages of the table of EXIT STATUS to their status and stream."""
    rows = re.findall(r"^\.It (\w+) Ta (\w+) Ta (.+)", SECTIONS["EXIT STATUS"], re.M)
    return {message.partition(",")[0]: (status, stream) for status, stream, message in rows}


def test_the_table_has_these_statuses_and_messages_and_no_others() -> None:
    # A fork fails in test_children.py.
    rows = {**{outcome.message: outcome.row for outcome in OUTCOMES}, "fork failed: reason": "1"}
    assert {message: status for message, (status, _) in table().items()} == rows


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: outcome.args)
def test_a_status_and_a_message_of_the_table_are_what_the_program_has(
    outcome: Outcome, work: pathlib.Path
) -> None:
    for name, text in {"program": "", "text": ""}.items():
        (work / name).write_text(text)
    (work / "program").chmod(0o755)
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(os.fspath(work / "busy"))
        busy.listen()
        result = ours(*shlex.split(outcome.args.replace("{}", str(work))))
    assert result.status == outcome.status
    message = re.sub(r"\b(pid|n|signal)$", r"\\d+", outcome.message)
    message = message.replace("app: reason", f"{work}/[a-z]+: .+")
    message = message.replace("what failed: reason", ".+: .+")
    spoke = result.out if table()[outcome.message][1] == "stdout" else result.err
    assert re.search(f"^spawn-fcgi: {message}$", spoke.decode(), re.M)


@pytest.mark.parametrize("status", [2, 8, 13, 126, 127])
def test_the_page_explains_this_status(status: int) -> None:
    assert re.search(rf"\b{status} (if|means)\b", SECTIONS["EXIT STATUS"] + SECTIONS["DIAGNOSTICS"])


def messages() -> Iterator[str]:
    """Yield a regular expression for each text that the program may say after its name."""
    position = {"Error": 0, "naming": 0, "say": 1, "OSError": 1, "FileExistsError": 1}
    for node in ast.walk(ast.parse((harness.ROOT / "spawn_fcgi.py").read_text())):
        said: list[ast.expr] = []
        if isinstance(node, ast.Call) and ast.unparse(node.func) in position:
            said = node.args[position[ast.unparse(node.func)] :][:1]
        elif isinstance(node, (ast.Assign, ast.AugAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if ast.unparse(target) in ("reason", "fork_failure", "MEANING"):
                said = [node.value]
        for text in (text for one in said for text in ast.walk(one)):
            if isinstance(text, ast.JoinedStr):
                parts = [getattr(part, "value", None) for part in text.values]
                yield "".join(re.escape(p) if isinstance(p, str) else ".+" for p in parts)
            elif isinstance(text, ast.Constant) and " " in str(text.value):
                yield re.escape(str(text.value))


@pytest.mark.parametrize("message", sorted(set(messages())))
def test_the_page_has_a_cure_for_this_message(message: str) -> None:
    heads = [plain(head) for head in re.findall(r'^\.It Sy "(.+)"', SECTIONS["DIAGNOSTICS"], re.M)]
    assert [head for head in heads if re.search(message, head)]
