"""`make demo`, and the sample application that it spawns."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import sys
from typing import Any

import demo
import harness
import pytest


def test_the_sample_answers_and_the_demo_leaves_nothing(
    work: pathlib.Path, port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [pid] = harness.run("-p", port, "--", sys.executable, harness.ROOT / "tests/app.fcgi").pids
    said = demo.ask(
        demo.connect(("127.0.0.1", int(port))), b"abc", SCRIPT_NAME="/a", PATH_INFO="", OTHER="x"
    )
    assert said == {
        "PID": str(pid),
        "SCRIPT_NAME": "/a",
        **dict.fromkeys(("PATH_INFO", "REQUEST_METHOD", "REQUEST_URI", "QUERY_STRING"), ""),
        "STDIN": "3",
    }
    harness.kill(pid)

    monkeypatch.setattr(harness, "program", [sys.executable, "-B", harness.ROOT / "tests/demo.py"])
    more: dict[str, Any] = {"env": {"TMPDIR": str(work)}, "start_new_session": True}

    def assert_nothing_left() -> None:
        assert (os.listdir(work), harness.my_children()) == ([], [])
        assert not harness.connects(("127.0.0.1", int(port)))

    shown = harness.run(port, **more)
    assert (shown.status, shown.err, len(shown.pids)) == (0, b"", 4)
    command, *lines = shown.out.decode().splitlines()
    assert command.startswith(f"$ spawn-fcgi -a 127.0.0.1 -p {port} -F 4 -P {work}/")
    answers = [line.split(" answered by PID ") for line in lines[4:]]
    assert [uri for uri, _ in answers] == [f"/hello/{number}" for number in range(1, 9)]
    assert sorted(int(by) for _, by in answers) == sorted(shown.pids * 2)
    assert_nothing_left()

    with harness.popen(port, **more) as interrupted:
        assert interrupted.stdout
        interrupted.stdout.readline()  # and now it waits for the spawner
        os.killpg(interrupted.pid, signal.SIGINT)
        _, err = interrupted.communicate(timeout=20)
    assert err == b""
    assert_nothing_left()

    with socket.create_server(("127.0.0.1", int(port))):
        busy = harness.run(port, **more)
    assert (busy.status, len(busy.lines), busy.pids) == (255, 1, [])
    assert port in busy.lines[0]
    assert_nothing_left()
