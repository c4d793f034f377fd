"""`make demo`, and the sample application that it spawns."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

import demo
import harness


def test_the_sample_answers_and_the_demo_leaves_nothing(port: str, monkeypatch: Any) -> None:
    address = ("127.0.0.1", int(port))
    [pid] = harness.run("-p", port, "--", sys.executable, harness.ROOT / "tests/app.fcgi").pids
    said = demo.ask(demo.connect(address), SCRIPT_NAME="/a", PATH_INFO="", OTHER="x")
    nothing = dict.fromkeys(("PATH_INFO", "REQUEST_METHOD", "REQUEST_URI", "QUERY_STRING"), "")
    assert said == {"PID": str(pid), "SCRIPT_NAME": "/a", "STDIN": "3", **nothing}
    harness.end_children()

    monkeypatch.setattr(harness, "program", [sys.executable, "-B", harness.ROOT / "tests/demo.py"])
    shown = harness.run(port)
    assert (shown.status, shown.err, len(shown.pids)) == (0, b"", 4)
    command, *lines = shown.out.decode().splitlines()
    assert command == f"$ spawn-fcgi -a 127.0.0.1 -p {port} -F 4 -- tests/app.fcgi"
    answers = [line.split(" answered by PID ") for line in lines[4:]]
    assert [uri for uri, _ in answers] == [f"/hello/{number}" for number in range(1, 5)]
    assert sorted(int(by) for _, by in answers) == sorted(shown.pids)
    assert (harness.my_children(), harness.connects(address)) == ([], False)

    with harness.popen(port, start_new_session=True) as interrupted:
        assert interrupted.stdout
        interrupted.stdout.readline()  # the command
        interrupted.stdout.readline()  # and a PID: so the spawner has passed Python's start
        os.killpg(interrupted.pid, signal.SIGINT)
        _, err = interrupted.communicate(timeout=20)
    assert (err, harness.my_children(), harness.connects(address)) == (b"", [], False)

    with socket.create_server(address):
        busy = harness.run(port)
    assert (busy.status, len(busy.lines), harness.my_children()) == (255, 1, [])
    assert port in busy.lines[0]
