"""README.md and the man page are true of the program: options, messages, statuses and commands.

What the page has people type is typed in test_recipes.py.
"""

from __future__ import annotations

import ast
import fcntl
import os
import pathlib
import re
import resource
import shlex
import shutil
import socket
import string
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any, NamedTuple

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


SCRIPT = (sys.executable, "-I", str(harness.ROOT / "spawn_fcgi.py"))


def ours(*args: harness.Arg, program: Sequence[str] = SCRIPT, **kwargs: Any) -> harness.Result:
    """Run our program, from the checkout or where it is installed; kwargs as of Popen."""
    command = [*program, *args]
    environment = harness.clean_environment()
    done = subprocess.run(
        command, cwd="/", env=environment, capture_output=True, timeout=20, check=False, **kwargs
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


@pytest.mark.alone
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
    assert [head for head in page_messages() if re.search(message, head)]


def page_messages() -> list[str]:
    """Return the messages that DIAGNOSTICS explains."""
    return [plain(head) for head in re.findall(r'^\.It Sy "(.+)"', SECTIONS["DIAGNOSTICS"], re.M)]


class Provoked(NamedTuple):
    """A message of the page, what leads to it, the system call to fail, and who calls."""

    message: str
    args: str  # {} is a directory
    fails: str = ""
    kwargs: Mapping[str, Any] = MappingProxyType({})


USER = {"user": harness.NOBODY, "group": harness.NOBODY, "extra_groups": []}
SMALL_FILES = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))}
PROVOKED = [
    Provoked("child spawned successfully: PID: pid", "-s {}/s -- /bin/sleep 60"),
    Provoked("child exited with: 127", "-s {}/s -f {}/missing"),
    Provoked("127 means: not found, or a shared library is missing", "-s {}/s -f {}/missing"),
    Provoked("child exited with: 126", "-s {}/s -f {}/text"),
    Provoked("126 means: not executable", "-s {}/s -f {}/text"),
    Provoked("child exited with: n", "-s {}/s -- /bin/false"),
    Provoked("child signaled: signal", "-s {}/s -- /bin/sh -c 'kill -9 $$'"),
    Provoked("exec failed: app: No such file or directory", "-s {}/s -- {}/missing"),
    Provoked(
        "exec failed: app: the file is there, but its interpreter is not", "-s {}/s -- {}/dos"
    ),
    Provoked("exec failed: app: Permission denied", "-s {}/s -- {}/text"),
    Provoked(
        "exec failed: app: Exec format error (it has no #! line, or is for another machine)",
        "-s {}/s -- {}/program",
    ),
    Provoked(
        "cannot write PID file 'path': reason",
        "-s {}/s -P {}/p -- /bin/sleep 60",
        kwargs=SMALL_FILES,
    ),
    Provoked("fork failed: reason", "-s {}/s -- /bin/sleep 60", "clone:error=EAGAIN"),
    Provoked("cannot bind to path: already in use", "-s {}/busy -- x"),
    Provoked(
        "cannot bind to address port n: Address already in use", "-a 127.0.0.1 -p {port} -- x"
    ),
    Provoked(
        "cannot bind to path: already in use: its directory stays locked", "-s {}/locked/s -- x"
    ),
    Provoked("cannot bind to path: exists and is not itself a socket", "-s {}/text -- x"),
    Provoked("cannot bind to path: exists, and may be in use: reason", "-s {}/datagram -- x"),
    Provoked("cannot bind to path: No such file or directory", "-s {}/no/s -- x"),
    Provoked("cannot bind to path: Permission denied", "-s {}/s -- x", kwargs=USER),
    Provoked("cannot bind to address port n: Permission denied", "-p 9 -- x", "bind:error=EACCES"),
    Provoked(
        "cannot bind to address port n: Cannot assign requested address", "-a 192.0.2.1 -p 9 -- x"
    ),
    Provoked("cannot open PID file 'path': reason", "-s {}/s -P {}/no/p -- x"),
    Provoked("cannot empty PID file 'path': reason", "-s {}/s -P {}/p -- x", "ftruncate:error=EIO"),
    Provoked("cannot open PID file 'path': exists and is no regular file", "-s {}/s -P {} -- x"),
    Provoked("-u: no such user: 'user'", "-s {}/s -u nosuch -- x"),
    Provoked("-g: no such group: 'group'", "-s {}/s -g nosuch -- x"),
    Provoked("-u user: will not run as root", "-s {}/s -u root -- x"),
    Provoked(
        "set-uid or set-gid, to uid:gid: will not run as such", "-s {}/s -- x", "geteuid:retval=7"
    ),
    Provoked("cannot change to group gid: reason", "-s {}/s -g 7 -- x", "setgroups:error=EPERM"),
    Provoked(
        "cannot change to user uid: reason", "-s {}/s -u 7 -g 7 -- x", "setresuid:error=EAGAIN"
    ),
    Provoked("cannot chroot to 'directory': reason", "-s {}/s -c {}/no -- x"),
    Provoked("cannot change to directory 'directory': reason", "-s {}/s -d {}/no -- x"),
    Provoked("warning: not root, so without effect: options", "-s {}/s -S -- x", kwargs=USER),
    Provoked(
        "warning: -u uid has no entry and -g is not given: only the user is dropped",
        "-s {}/s -u 61234 -- x",
    ),
    Provoked("no FastCGI application given (see spawn-fcgi -h)", "-s {}/s"),
    Provoked("no socket given: use -p or -s", "-- x"),
    Provoked("use -p or -s, not both", "-s {}/s -p 9 -- x"),
    Provoked("-a: not an IPv4 or IPv6 address: 'text': reason", "-a localhost -p 9 -- x"),
    Provoked("-s: a socket path has 1 to 107 bytes: 'path'", "-s {}/" + 107 * "s" + " -- x"),
    Provoked("option -x not recognized (see spawn-fcgi -h)", "-x"),
    Provoked("option -x requires argument (see spawn-fcgi -h)", "-s"),
    Provoked("-p: no number from 1 to 65535: 'text'", "-p 0 -- x"),
    Provoked("-M: no number from 0 to 7777, in octal: 'text'", "-s {}/s -M 8 -- x"),
    Provoked("cannot start: reason", "-s {}/s -- x", "pipe2:error=EMFILE"),
]


def is_death(provoked: Provoked) -> bool:
    """Say whether a child has to die within the grace time."""
    return re.match(r"child (exited|signaled)|\d+ means", provoked.message) is not None


PLACES = r"\b(?:pid|n|signal|app|reason|path|address|user|group|uid|gid|directory|options|text|x)\b"


@pytest.fixture
def obstacles(work: pathlib.Path) -> Iterator[dict[str, int]]:
    """Make what the arguments of PROVOKED name, and return the port that they take."""
    for name, text in {"text": "", "program": "", "dos": "#!/bin/sh\r\n"}.items():
        (work / name).write_text(text)
    for name in ("program", "dos"):
        (work / name).chmod(0o755)
    (work / "locked").mkdir()
    with ExitStack() as stack:
        lock = os.open(work / "locked", os.O_RDONLY)
        stack.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        kinds = {"busy": socket.SOCK_STREAM, "locked/s": socket.SOCK_STREAM}
        for name, kind in {**kinds, "datagram": socket.SOCK_DGRAM}.items():
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            sock.bind(os.fspath(work / name))
            if name == "busy":
                sock.listen()
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        yield {"port": port.getsockname()[1]}


@pytest.fixture(scope="module")
def installed() -> Iterator[str]:
    """Return the path of our program where ordinary users can execute it."""
    with tempfile.TemporaryDirectory(prefix="sf-docs-") as directory:
        os.chmod(directory, 0o755)
        on_c_tool = harness.on_c_tool()
        yield harness.install(pathlib.Path(directory)) if on_c_tool else harness.program[0]


@pytest.mark.root
@pytest.mark.parametrize(
    "provoked",
    [
        pytest.param(one, id=one.message, marks=pytest.mark.alone if is_death(one) else ())
        for one in PROVOKED
    ],
)
def test_the_program_has_this_message_of_the_page(
    provoked: Provoked, work: pathlib.Path, obstacles: dict[str, int], installed: str
) -> None:
    args = provoked.args.replace("{}", str(work)).format(**obstacles)
    fail = ["strace", "-o", "/dev/null", "-e", f"inject={provoked.fails}"]
    program = [*fail, installed] if provoked.fails else [installed]
    result = ours(*shlex.split(args), program=program, **provoked.kwargs)
    message = re.sub(PLACES, ".+", re.escape(provoked.message))
    lines = [*result.out.decode().splitlines(), *result.lines]
    assert [line for line in lines if re.fullmatch(f"spawn-fcgi: {message}", line)]


def test_every_message_of_the_page_is_provoked_and_no_other() -> None:
    assert [provoked.message for provoked in PROVOKED] == page_messages()
