"""What `make demo` does: spawn four processes of the sample application, and send it requests."""

from __future__ import annotations

import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress

sys.dont_write_bytecode = True  # leave no file

import fastcgi  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
APP = "tests/app.fcgi"
PR_SET_CHILD_SUBREAPER = 36
CHILDREN, REQUESTS = 4, 8


def send_requests(port: int) -> None:
    """Send requests on connections that stay open, and so keep every process busy with one."""
    with ExitStack() as stack:
        address = ("127.0.0.1", port)
        connections = [stack.enter_context(fastcgi.connect(address)) for _ in range(CHILDREN)]
        for number in range(1, REQUESTS + 1):
            params = {b"REQUEST_METHOD": b"GET", b"REQUEST_URI": b"/hello/%d" % number}
            connection = connections[number % CHILDREN]
            response = fastcgi.exchange(connection, params, flags=fastcgi.FCGI_KEEP_CONN)
            pid, *lines = response.body.decode().splitlines()
            print(f"request {number}: {response.status} from {pid}, {', '.join(lines)}")


def stop(pid_file: pathlib.Path) -> None:
    """End the processes of the PID file, and wait until they are gone."""
    pids = [int(pid) for pid in pid_file.read_text().split()] if pid_file.exists() else []
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def demonstrate(port: str, pid_file: pathlib.Path) -> int:
    """Spawn, send requests and stop; return the status of the spawner."""
    options = ["-a", "127.0.0.1", "-p", port, "-F", str(CHILDREN), "-P", str(pid_file), "--"]
    print("$ spawn-fcgi", *options, APP)
    command = [sys.executable, "spawn_fcgi.py", *options, sys.executable, APP]
    # In a session of its own Ctrl-C does not reach it: it gets to write the PID file.
    spawner = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        status = spawner.wait()
        if status == 0:
            send_requests(int(port))
        return status
    finally:
        for interruption in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(interruption, signal.SIG_IGN)
        spawner.wait()
        stop(pid_file)


def main() -> int:
    """Run the demo with the port of the command line and return the exit status."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    for interruption in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(interruption, signal.default_int_handler)
    # The processes are orphans once the spawner has ended: adopted, they can be awaited.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        with tempfile.TemporaryDirectory(prefix="spawn-fcgi-demo-") as directory:
            return demonstrate((sys.argv[1:] or ["9000"])[0], pathlib.Path(directory, "app.pid"))
    except KeyboardInterrupt:
        return 130
    except (OSError, fastcgi.ProtocolError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
