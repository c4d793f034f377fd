"""README.md and the man page are true: their commands run, and they name what the program has.

The examples run the program under test; what the page says of options, messages and statuses is
held against our own program, spawn_fcgi.py, whatever $SPAWN_FCGI names.
"""

from __future__ import annotations

import os
import pathlib
import pwd
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import harness
import pytest

README = (harness.ROOT / "README.md").read_text()
PAGE_FILE = harness.ROOT / "man/spawn-fcgi.1"
PAGE = PAGE_FILE.read_text().replace("\\-", "-").replace("\\&", "")
SECTIONS = dict(re.findall(r"^\.Sh (.+)\n((?:(?!\.Sh ).*\n)*)", PAGE, re.M))
PORT, USER = "9000", "app"  # placeholders of the examples, as are all absolute paths in them


class Service(NamedTuple):
    """What an example leaves running, on which port or Unix socket, and as whom."""

    processes: int
    where: str
    user: str = "root"
    owner: str = ""
    mode: int = 0
    pid_file: str = ""
    no_fork: bool = False
    root: str = ""
    variable: bytes = b""


STOP = "kill $(cat /run/app.pid)"
FIRST = "spawn-fcgi -a 127.0.0.1 -p 9000 -F 4 -P /run/app.pid -- ./app.fcgi"
CHROOT = "spawn-fcgi -c /srv/app -S -s /run/app.sock -u www-data -- ./app.fcgi"
SERVICES = {
    FIRST: Service(4, PORT, pid_file="run/app.pid"),
    "spawn-fcgi -s /run/php.sock -u app -U www-data -M 0600 -P /run/php.pid -- /usr/bin/php-cgi": (
        Service(1, "run/php.sock", "nobody", "www-data", 0o600, "run/php.pid")
    ),
    "exec spawn-fcgi -n -s /run/app.sock -u www-data -- ./app.fcgi": (
        Service(1, "run/app.sock", "www-data", "www-data", 0o640, no_fork=True)
    ),
    "exec spawn-fcgi -n -p 9000 -- /usr/bin/multiwatch -f 4 -- ./app.fcgi": (
        Service(4, PORT, no_fork=True)
    ),
    "spawn-fcgi -p 9000 -C 8 -P /run/php.pid -- /usr/bin/php-cgi": (
        Service(1, PORT, pid_file="run/php.pid", variable=b"PHP_FCGI_CHILDREN=8")
    ),
    CHROOT: Service(1, "run/app.sock", "www-data", "www-data", 0o640, root="srv/app"),
    "spawn-fcgi -p 9000 -f 'env DEBUG=1 app.fcgi'": Service(1, PORT, variable=b"DEBUG=1"),
}
MAKE = {
    "make demo": "tests/demo.py 9000",
    "make test": "-m pytest",
    "make install": "/usr/local/bin/spawn-fcgi",
    "make uninstall": "/usr/local/bin/spawn-fcgi",
}

APP = "#!/bin/sh\nexec sleep 60\n"
# Like multiwatch(1), as far as the example needs it: -f <n> -- <command>.
MULTIWATCH = """#!/bin/sh
[ "$1 $3" = "-f --" ] || exit 1
n=$2; shift 3
exec 3<&0
while [ $((n -= 1)) -gt 0 ]; do "$@" <&3 3<&- & done
exec "$@" 3<&-
"""


def readme_commands() -> list[str]:
    """Return the lines of the README's sh blocks."""
    return "".join(re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)).splitlines()


def page_commands() -> list[str]:
    """Return the lines of the literal blocks in the page's EXAMPLES."""
    blocks = re.findall(r"^\.Bd -literal.*\n((?:.*\n)*?)\.Ed", SECTIONS["EXAMPLES"], re.M)
    return "".join(blocks).splitlines()


def write_script(path: pathlib.Path, text: str) -> None:
    """Write an executable file that every user may run, and the directories to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def copy_program(file: str, root: pathlib.Path) -> None:
    """Copy a program with its shared libraries to the same paths below root."""
    libraries = subprocess.run(["ldd", file], check=True, capture_output=True, text=True).stdout
    for path in (file, *re.findall(r"(/\S+) \(", libraries)):
        copy = root / path[1:]
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


@pytest.fixture
def machine(work: pathlib.Path) -> pathlib.Path:
    """Return a directory with all that the examples take for granted, absolute paths below it."""
    write_script(work / "bin/spawn-fcgi", f'#!/bin/sh\nexec {shlex.join(harness.program)} "$@"\n')
    for name in ("app.fcgi", "bin/app.fcgi", "usr/bin/php-cgi", "srv/app/app.fcgi"):
        write_script(work / name, APP)
    write_script(work / "usr/bin/multiwatch", MULTIWATCH)
    for program in ("/bin/sh", "/bin/sleep"):
        copy_program(program, work / "srv/app")
    (work / "run").mkdir()
    return work


def start(command: str, machine: pathlib.Path, port: int) -> subprocess.Popen[bytes]:
    """Start a command of the documents on this machine, in place of its placeholders."""
    command = re.sub(r"(?<= )/(?=\w)", f"{machine}/", command)
    command = command.replace(f" {PORT}", f" {port}").replace(f"-u {USER} ", "-u nobody ")
    with open(machine / "out", "ab") as out, open(machine / "log", "ab") as log:
        return subprocess.Popen(
            ["/bin/sh", "-c", f"umask 027; {command}"],
            cwd=machine,
            env=harness.clean_environment(PATH=f"{machine / 'bin'}:{harness.PATH}"),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=log,
        )


def descendants() -> Iterator[int]:
    """Yield the PIDs of all processes below this one."""
    todo = harness.my_children()
    while todo:
        pid = todo.pop()
        try:
            todo += map(int, harness.proc(pid, f"task/{pid}/children").split())
        except OSError:
            continue
        yield pid


def applications(others: list[int]) -> list[int]:
    """Return the PIDs of the stand-in applications, but for those of others."""
    return [p for p in descendants() if p not in others and harness.exe(p).endswith("/sleep")]


def check_service(service: Service, pids: list[int], machine: pathlib.Path, port: int) -> None:
    """Fail unless these processes are what the service is said to be."""
    user = pwd.getpwnam(service.user)
    for state in map(harness.state, pids):
        assert service.no_fork or state.fds[1] == state.fds[2] == "/dev/null"
        assert state.uids == [user.pw_uid] * 4
        assert state.gids == [user.pw_gid] * 4
        assert state.fds[0].startswith("socket:")
        assert state.root == (str(machine / service.root) if service.root else "/")
        assert not service.variable or service.variable in state.environ
    if service.where == PORT:
        assert harness.connects(("127.0.0.1", port))
    else:
        path = machine / service.where
        assert harness.connects(path)
        assert stat.S_IMODE(path.stat().st_mode) == service.mode
        assert path.owner() == service.owner
    if service.pid_file:
        assert sorted(map(int, (machine / service.pid_file).read_text().split("\n"))) == pids
    assert (machine / "log").read_bytes() == b""


def test_every_command_of_the_documents_is_known_here_and_the_reverse() -> None:
    assert set(readme_commands()) <= MAKE.keys() | SERVICES.keys()
    assert set(MAKE) <= set(readme_commands())
    assert set(page_commands()) == SERVICES.keys() | {STOP}


def test_three_examples_of_the_readme_are_in_the_page_verbatim() -> None:
    examples = [line for line in readme_commands() if line not in MAKE]
    assert len(examples) == 3
    assert set(examples) <= set(page_commands())


@pytest.mark.root
@pytest.mark.parametrize(
    "command",
    [
        *(line for line in SERVICES if line != CHROOT),
        pytest.param(CHROOT, marks=pytest.mark.differs(11)),
    ],
)
def test_an_example_starts_what_its_sentence_says(command: str, machine: pathlib.Path) -> None:
    others, port, service = list(descendants()), harness.free_port(), SERVICES[command]
    process = start(command, machine, port)
    try:
        if not service.no_fork:
            assert process.wait(20) == 0, (machine / "log").read_text()
        harness.wait_for(lambda: len(applications(others)) >= service.processes)
        check_service(service, sorted(applications(others)), machine, port)
        assert len(applications(others)) == service.processes
    finally:
        process.kill()
        process.wait()


@pytest.mark.root
def test_the_stop_command_ends_the_children_of_the_first_example(machine: pathlib.Path) -> None:
    others, port = list(descendants()), harness.free_port()
    assert start(FIRST, machine, port).wait(20) == 0
    harness.wait_for(lambda: len(applications(others)) == 4)
    assert start(STOP, machine, port).wait(20) == 0
    harness.wait_for(lambda: not applications(others))


@pytest.mark.parametrize("command", MAKE)
def test_a_make_command_of_the_readme_has_a_recipe(command: str) -> None:
    target = command.split()[1]
    dry_run = ["make", "-n", "-C", str(harness.ROOT), target, f"PYTHON={sys.executable}"]
    environment = harness.clean_environment()  # without the MAKEFLAGS of `make test`
    done = subprocess.run(dry_run, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert MAKE[command] in done.stdout


def test_every_make_variable_of_the_readme_is_one_of_the_makefile() -> None:
    makefile = (harness.ROOT / "Makefile").read_text()
    named = set(re.findall(r"`([A-Z]+)=", README))
    assert {"PREFIX", "DESTDIR"} <= named
    assert not [name for name in named if f"$({name})" not in makefile]


def test_mandoc_has_nothing_to_say_of_the_page() -> None:
    assert shutil.which("mandoc"), "mandoc is missing: apt-get install mandoc"
    lint = ["mandoc", "-Tlint", "-W", "style", str(PAGE_FILE)]
    done = subprocess.run(lint, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_sentence_of_the_page_starts_a_line() -> None:
    assert not re.findall(r"^[^.].*[a-z)][.:;?!] +[A-Z].*$", PAGE, re.M)


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


def test_the_synopsis_has_every_option_of_one_letter() -> None:
    flags = "".join(re.findall(r"Fl ([^\s-]+)", SECTIONS["SYNOPSIS"]))
    options = help_options(ours("--help").out.decode())
    assert sorted(set(flags)) == sorted(option[1] for option in options if len(option) == 2)


class Outcome(NamedTuple):
    """Arguments, the item of EXIT STATUS that they lead to, and that of DIAGNOSTICS."""

    args: str
    status: int
    item: str
    message: str


OUTCOMES = [
    Outcome("-s {}/s -- /bin/sleep 60", 0, "0", "child spawned successfully: PID: pid"),
    Outcome("-s {}/s -f 'sh -c \"kill -9 $$\"'", 1, "1", "child signaled: signal"),
    Outcome("-s {}/s -f 'sh -c \"exit 7\"'", 7, "Ar n", "child exited with: n"),
    Outcome("-s {}/s -f {}/missing", 127, "Ar n", "child exited with: n"),
    Outcome("-s {}/s -- {}/missing", 2, "Ar errno", "exec failed: app: reason"),
    Outcome("-s {}/s -- {}/program", 8, "Ar errno", "exec failed: app: reason"),
    Outcome("-s {}/s -- {}/text", 13, "Ar errno", "exec failed: app: reason"),
    Outcome("-n -s {}/s -- {}/text", 13, "Ar errno", "exec failed: app: reason"),
    Outcome("-s {}/busy -- /bin/sleep 60", 255, "255", "already in use"),
]


def items(section: str) -> set[str]:
    """Return the heads of the list in a section of the page."""
    return set(re.findall(r"^\.It (.+)", SECTIONS[section], re.M))


def test_the_page_lists_these_statuses_and_messages_and_no_others() -> None:
    assert items("EXIT STATUS") == {outcome.item for outcome in OUTCOMES}
    assert items("DIAGNOSTICS") == {outcome.message for outcome in OUTCOMES}


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: outcome.args)
def test_a_status_and_a_message_of_the_page_are_what_the_program_has(
    outcome: Outcome, work: pathlib.Path
) -> None:
    write_script(work / "program", "")
    (work / "text").touch()
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(os.fspath(work / "busy"))
        busy.listen()
        result = ours(*shlex.split(outcome.args.replace("{}", str(work))))
    assert result.status == outcome.status
    message = re.sub(r"\b(pid|n|signal)$", r"\\d+", outcome.message)
    message = message.replace("app: reason", f"{work}/[a-z]+: .+")
    prefix = "(spawn-fcgi: )?" if "spawn" in message else "spawn-fcgi: .*"
    spoke = result.out if outcome.status == 0 else result.err
    assert re.search(f"^{prefix}{message}$", spoke.decode(), re.M)


@pytest.mark.parametrize("status", [2, 8, 13, 126, 127])
def test_the_page_explains_this_status(status: int) -> None:
    assert re.search(rf"\b{status}\b", SECTIONS["EXIT STATUS"] + SECTIONS["DIAGNOSTICS"])


@pytest.mark.parametrize("args", [["--help"], ["-v"]])
def test_help_and_version_exit_with_0(args: list[str]) -> None:
    assert ours(*args).status == 0


def test_no_arguments_at_all_exit_with_255() -> None:
    assert ours().status == 255
