"""The systems that people spawn serve pages behind the servers that people use."""

from __future__ import annotations

import os
import pathlib
import pwd
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import harness
import peers
import pytest

ACCOUNT = pwd.getpwnam("www-data")
USER = f"{ACCOUNT.pw_uid}:{ACCOUNT.pw_gid}" if peers.DROP else f"{os.getuid()}:{os.getgid()}"

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def backends() -> Iterator[dict[str, peers.Backend]]:
    """Return every application at both transports, by name, with its pages on disk."""
    site = pathlib.Path(tempfile.mkdtemp(prefix="sf-peers-"))
    site.chmod(0o755)
    try:
        yield {backend.name: backend for backend in peers.make_site(site)}
    finally:
        shutil.rmtree(site)


@pytest.fixture(scope="module", params=peers.SERVERS)
def server(
    request: pytest.FixtureRequest, backends: dict[str, peers.Backend]
) -> Iterator[tuple[str, peers.Fetch]]:
    """Run each server once, before all backends; return its name and what fetches a page."""
    site = next(iter(backends.values())).site
    with peers.serving(request.param, site, list(backends.values())) as fetch:
        yield request.param, fetch


@contextmanager
def spawned(backend: peers.Backend, fork: bool = True) -> Iterator[list[int]]:
    """Start an application through the program under test, with fork or with -n; yield PIDs."""
    args, environment = backend.spawner_args(), backend.environment()
    if fork:
        result = harness.run(*args, env=environment)
        assert (result.status, result.lines) == (0, [])
        yield result.pids
        return
    with harness.popen("-n", *args, env=environment) as process:
        try:
            harness.wait_for(lambda: harness.exe(process.pid).endswith(f"/{backend.app.name}"))
            yield [process.pid]
        finally:
            process.kill()


def fetch_page(server: tuple[str, peers.Fetch], backend: peers.Backend) -> peers.Page:
    """Fetch the application's page, and see that it says what the request and the server are."""
    name, fetch = server
    query, body = f"from={name}&to={backend.name}", f"posted to {backend.name}"
    page = fetch(backend, query, body)
    assert page.status == 200, page
    assert page.says["by"].startswith(backend.app.by)
    assert page.says["server"].lower().startswith(name.rstrip("2"))  # apache2 calls itself Apache
    assert (page.says["method"], page.says["query"], page.says["body"]) == ("POST", query, body)
    assert page.says["user"] == USER
    return page


@pytest.mark.parametrize("transport", peers.TRANSPORTS)
@pytest.mark.parametrize("app", [app.name for app in peers.APPS])
def test_a_spawned_application_serves_its_page(
    server: tuple[str, peers.Fetch],
    backends: dict[str, peers.Backend],
    app: str,
    transport: str,
) -> None:
    backend = backends[f"{app}-{transport}"]
    with spawned(backend) as pids:
        assert len(pids) == backend.app.children
        assert fetch_page(server, backend).pids & set(pids)


@pytest.mark.parametrize("transport", peers.TRANSPORTS)
def test_C_has_php_make_so_many_children_of_its_own(
    server: tuple[str, peers.Fetch], backends: dict[str, peers.Backend], transport: str
) -> None:
    with spawned(backends[f"php-C-{transport}"]) as [php]:
        page = fetch_page(server, backends[f"php-C-{transport}"])
        assert page.says["ppid"] == str(php)
        harness.wait_for(lambda: len(peers.children_of(php)) == 2)


@pytest.mark.parametrize("transport", peers.TRANSPORTS)
def test_F_makes_so_many_phps_and_each_of_them_serves(
    server: tuple[str, peers.Fetch], backends: dict[str, peers.Backend], transport: str
) -> None:
    backend = backends[f"php-F-{transport}"]
    with spawned(backend) as pids:
        first = int(fetch_page(server, backend).says["pid"])
        os.kill(first, signal.SIGKILL)
        harness.wait_for(lambda: not harness.alive(first))
        second = int(fetch_page(server, backend).says["pid"])
        assert sorted(pids) == sorted([first, second])


@pytest.mark.parametrize("transport", peers.TRANSPORTS)
@pytest.mark.parametrize("fork", [True, False], ids=["fork", "n"])
def test_multiwatch_brings_killed_workers_back(
    server: tuple[str, peers.Fetch],
    backends: dict[str, peers.Backend],
    fork: bool,
    transport: str,
) -> None:
    backend = backends[f"multiwatch-{transport}"]
    with spawned(backend, fork) as [watcher]:
        assert fetch_page(server, backend).says["ppid"] == str(watcher)
        workers = harness.wait_for(
            lambda: len(peers.children_of(watcher)) == 2 and peers.children_of(watcher)
        )
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        harness.wait_for(lambda: not any(map(harness.alive, workers)))
        page = fetch_page(server, backend)
        assert page.says["ppid"] == str(watcher)
        assert int(page.says["pid"]) not in workers
        harness.wait_for(lambda: len(peers.children_of(watcher) - workers) == 2)
