"""Ports, child processes and the supervisor's parts, on real processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.ports import any_free

from textmill.errors import Conflict, NotFound, Transient
from textmill_cli.local import servers
from textmill_cli.local.ports import is_free, remembered
from textmill_cli.local.process import Child, command_of, process_alive, wait_gone
from textmill_cli.local.stack import Stack
from textmill_cli.local.up import states, stop, supervisor_pid
from textmill_cli.local.wait import wait_until
from textmill_cli.settings import CliSettings

SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")


def test_ports_are_remembered_and_replaced_when_taken(tmp_path: Path) -> None:
    """Those that are remembered here no client's connection has in the meantime, as it may have one of the kernel's."""
    fresh = remembered(tmp_path / "fresh.json", {"a": 0, "b": 0})
    assert fresh["a"] != fresh["b"]
    file, first = tmp_path / "ports.json", {"a": any_free(), "b": any_free()}
    assert remembered(file, first) == first
    assert remembered(file, {"a": 0, "b": 0}) == first
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first["a"]))
        taken.listen()
        assert not is_free(first["a"])
        second = remembered(file, {"a": 0, "b": 0})
    assert second["a"] != first["a"]
    assert second["b"] == first["b"]


def test_a_child_is_stopped_and_logs_to_its_file(tmp_path: Path) -> None:
    child = Child(
        "c", (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"), tmp_path / "c.log"
    )
    child.start()
    wait_until(lambda: "up" in (tmp_path / "c.log").read_text(), 60, "the child")
    child.stop(5)
    assert not child.alive()


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = "import signal,time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    child = Child("c", (sys.executable, "-c", code), tmp_path / "c.log")
    child.start()
    wait_until(lambda: "deaf" in (tmp_path / "c.log").read_text(), 60, "the child")
    child.stop(0.2)
    assert not child.alive()


def test_children_die_with_their_parent(tmp_path: Path) -> None:
    code = (
        "import sys,time; from pathlib import Path; from textmill_cli.local.process import Child\n"
        f"c = Child('c', {SLEEP!r}, Path({str(tmp_path / 'c.log')!r})); c.start()\n"
        "print(c.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert command_of(pid)[0] == sys.executable
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert wait_gone(pid, 60)


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    wait_until(lambda: not process_alive(child.pid), 60, "the end of the child")
    child.wait()
    assert command_of(child.pid) == []


def test_waiting_names_what_did_not_come() -> None:
    with pytest.raises(Transient, match="the moon was not ready"):
        wait_until(lambda: False, 0.05, "the moon", every_s=0.01)


def test_one_home_has_one_supervisor(tmp_path: Path) -> None:
    first, second = Stack(CliSettings(home=tmp_path)), Stack(CliSettings(home=tmp_path))
    first.hold()
    with pytest.raises(Conflict, match="is up already"):
        second.hold()


def test_down_without_up_is_no_error(tmp_path: Path) -> None:
    settings = CliSettings(home=tmp_path)
    settings.state_file.write_text('{"supervisor": 999999999, "processes": {}}')
    assert supervisor_pid(settings) is None
    assert not stop(settings)
    assert states(settings) == []


def test_a_dead_process_is_started_again(tmp_path: Path) -> None:
    told: list[str] = []
    stack = Stack(CliSettings(home=tmp_path), told.append)
    stack._add(Child("c", SLEEP, tmp_path / "c.log"), "nowhere")
    child = stack._watched["c"].child
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while child.pid == first and time.monotonic() < deadline:
        stack.watch()
        time.sleep(0.02)
    assert child.pid != first
    assert child.alive()
    assert "c ended" in told[0]
    child.stop(5)


def test_missing_servers_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound, match="requirements"):
        servers.weed_binary()
