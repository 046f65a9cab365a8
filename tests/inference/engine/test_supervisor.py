"""Supervision of real child processes, with a small program in vLLM's place."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tests.inference import toy_model
from tests.inference.stand_in import HERE, NEVER, QUICK, StandIn, chat, core_of, is_running, model, reply, server_of

from textmill.errors import JobFailed
from textmill_inference.engine.port import AttachedEngine, ModelFolder
from textmill_inference.engine.process import GuardedProcess
from textmill_inference.engine.supervisor import LocalEngine


@pytest.fixture
def engine(tmp_path):
    made = LocalEngine("small", StandIn(), tmp_path / "engine.log", QUICK)
    yield made
    made.stop()


def test_it_starts_answers_and_leaves_no_process(tmp_path, engine, waits):
    one = model(tmp_path, "one")
    assert not engine.ready
    assert engine.serve(one, NEVER) == "started"
    assert engine.ready
    assert engine.trouble == ""
    assert reply(engine)["choices"][0]["text"] == "I am one"
    assert engine.serve(one, NEVER) == "unchanged"
    server, core = server_of(engine), core_of(one)
    engine.stop()
    assert not engine.ready
    for part in (server, core):
        waits(lambda part=part: not is_running(part), "the process to be gone")


@pytest.mark.parametrize("victim", ["server", "core", "guard"])
def test_a_killed_part_brings_the_engine_back_without_leftovers(tmp_path, engine, waits, victim):
    one = model(tmp_path, "one")
    engine.serve(one, NEVER)
    server, core = server_of(engine), core_of(one)
    guard = int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill({"server": server, "core": core, "guard": guard}[victim], signal.SIGKILL)
    engine.suspect()
    waits(lambda: core_of(one) != core and engine.ready, "the engine to be back")
    for part in (server, core, guard):
        waits(lambda part=part: not is_running(part), "the old part to be gone")
    assert reply(engine)["choices"][0]["text"] == "I am one"


def test_same_geometry_swaps_in_place_and_empties_the_prefix_cache(tmp_path, engine):
    one, two = model(tmp_path, "one"), model(tmp_path, "two")
    engine.serve(one, NEVER)
    server = server_of(engine)
    assert engine.serve(two, NEVER) == "in_place"
    assert is_running(server)
    answer = reply(engine)
    assert answer["choices"][0]["text"] == "I am two"
    assert answer["steps"] == ["/pause?mode=wait", "/collective_rpc", "/reset_prefix_cache", "/resume"]


def test_after_a_swap_a_crash_brings_up_the_new_model(tmp_path, engine, waits):
    one, two = model(tmp_path, "one"), model(tmp_path, "two")
    engine.serve(one, NEVER)
    engine.serve(two, NEVER)
    os.kill(core_of(one), signal.SIGKILL)
    waits(lambda: (two.path / "core.pid").exists() and engine.ready, "the engine to be back")
    assert reply(engine)["choices"][0]["text"] == "I am two"


def test_another_geometry_restarts(tmp_path, engine, waits):
    one, two = model(tmp_path, "one"), model(tmp_path, "two", shape=2)
    engine.serve(one, NEVER)
    assert engine.serve(two, NEVER) == "restarted"
    assert reply(engine)["choices"][0]["text"] == "I am two"
    waits(lambda: not is_running(core_of(one)), "the old core to be gone")


def test_a_swap_that_the_engine_refuses_becomes_a_restart(tmp_path, engine):
    one, two = model(tmp_path, "one"), model(tmp_path, "two")
    (one.path / "no_reload").touch()
    engine.serve(one, NEVER)
    assert engine.serve(two, NEVER) == "restarted"
    assert reply(engine)["choices"][0]["text"] == "I am two"


def test_a_model_that_cannot_start_is_named_and_the_one_before_comes_back(tmp_path, engine, waits):
    one, bad = model(tmp_path, "one"), model(tmp_path, "bad", shape=2)
    (bad.path / "crash").touch()
    engine.serve(one, NEVER)
    with pytest.raises(JobFailed, match=r"bad doesn't start as 'small': .*no such tensor"):
        engine.serve(bad, NEVER)
    waits(lambda: engine.ready, "the model before to be back")
    assert reply(engine)["choices"][0]["text"] == "I am one"


def test_letting_go_in_the_middle_brings_the_model_before_back(tmp_path, engine, waits):
    one, two = model(tmp_path, "one"), model(tmp_path, "two", shape=2)
    engine.serve(one, NEVER)
    stopping = threading.Event()
    stopping.set()
    assert engine.serve(two, stopping) is None
    waits(lambda: engine.ready and engine.folder == one, "the model before to be back")
    assert reply(engine)["choices"][0]["text"] == "I am one"


def test_a_missing_model_is_waited_for(tmp_path, engine, waits):
    engine.begin(ModelFolder(tmp_path / "one"))
    waits(lambda: "config.json is missing" in engine.trouble, "the trouble to be told")
    model(tmp_path, "one")
    waits(lambda: engine.ready, "the model to be served")


def test_engines_take_turns_at_starting_and_stop_while_waiting(tmp_path):
    turn = threading.Semaphore(1)
    waiting = LocalEngine("second", StandIn(), tmp_path / "log", QUICK, turn)
    with turn:
        waiting.begin(model(tmp_path, "one"))
        stop = threading.Thread(target=waiting.stop, daemon=True)
        stop.start()
        stop.join(60)
        assert not stop.is_alive(), "it waits for a turn that never comes"
    assert not (tmp_path / "one" / "core.pid").exists()


def test_the_engine_dies_with_its_parent(tmp_path, waits):
    """Even if the parent is killed with SIGKILL and can clean up nothing."""
    one = model(tmp_path, "one")
    program = (
        "import sys, time; from pathlib import Path; from textmill_inference.engine.process import GuardedProcess\n"
        f"p = GuardedProcess([sys.executable, {str(HERE / 'stand_in_engine.py')!r}, {str(one.path)!r}, 'm', '0'],"
        f" {{}}, Path({str(tmp_path / 'log')!r}), 1.0)\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    waits(lambda: (one.path / "core.pid").exists() and (one.path / "core.pid").read_text() != "", "the engine to start")
    core = core_of(one)
    parent.kill()
    parent.wait()
    waits(lambda: not is_running(core), "the engine's core to be gone")


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path, waits):
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code = f"{deaf}; print('up', flush=True); time.sleep(600)"
    process = GuardedProcess([sys.executable, "-c", code], os.environ, tmp_path / "log", grace_s=0.2)
    waits(lambda: "up" in process.last_words(), "the child to be up")
    process.stop()
    assert not process.alive()
    assert "killing it" in process.last_words()


def test_an_attached_engine_is_ready_while_it_answers(engine_server, waits):
    attached = AttachedEngine("small", engine_server.url + "/")
    waits(lambda: attached.ready, "the engine to be found")
    engine_server.healthy = False
    attached.suspect()
    waits(lambda: not attached.ready, "the loss to be seen")
    engine_server.healthy = True
    waits(lambda: attached.ready, "the engine to be found again")
    attached.stop()


def test_a_swap_without_interruption_leaves_what_it_cannot_swap_as_it_is(tmp_path, engine):
    one, two = model(tmp_path, "one"), model(tmp_path, "two")
    assert engine.swap(one, NEVER) is None
    engine.serve(one, NEVER)
    server = server_of(engine)
    assert engine.swap(one, NEVER) == "unchanged"
    assert engine.swap(model(tmp_path, "wide", shape=2), NEVER) is None
    assert (engine.folder, reply(engine)["steps"]) == (one, [])
    assert engine.swap(two, NEVER) == "in_place"
    assert is_running(server)
    assert reply(engine)["choices"][0]["text"] == "I am two"


@pytest.mark.parametrize("proving", [False, True])
def test_a_swap_that_an_answer_under_way_holds_up_is_given_up(tmp_path, proving):
    engine = LocalEngine("small", StandIn(), tmp_path / "engine.log", replace(QUICK, swap_drain_s=0.3))
    one, two = model(tmp_path, "one"), model(tmp_path, "two")
    if proving:
        (two.path / "parity.json").write_text(toy_model.probe(two.path, ["?"]))
    (one.path / "hold").touch()  # the answer is under way for as long as the test wants
    try:
        engine.serve(one, NEVER)
        said, begun = [], threading.Event()
        asker = threading.Thread(target=lambda: said.append(chat(engine.url, "small", 10, 0.0, lambda _: begun.set())))
        asker.start()
        assert begun.wait(60)
        assert engine.swap(two, NEVER) is None
        assert engine.ready
        assert engine.folder == one
        (one.path / "hold").unlink()
        asker.join(60)
        assert said == ["I am one " * 10]
        assert chat(engine.url, "small") == "I am one " * 3
    finally:
        engine.stop()


def test_an_engine_that_must_end_lets_its_answers_end(tmp_path, engine):
    one, wide = model(tmp_path, "one"), model(tmp_path, "wide", shape=2)
    engine.serve(one, NEVER)
    said, begun = [], threading.Event()
    asker = threading.Thread(target=lambda: said.append(chat(engine.url, "small", 10, 0.05, lambda _: begun.set())))
    asker.start()
    assert begun.wait(60)
    assert engine.serve(wide, NEVER) == "restarted"
    asker.join(60)
    assert said == ["I am one " * 10]


def test_a_swap_in_which_the_engine_dies_ends_with_the_new_model(tmp_path, engine):
    one, two = model(tmp_path, "one"), model(tmp_path, "two")
    (one.path / "no_reload").touch()
    engine.serve(one, NEVER)
    assert engine.swap(two, NEVER) == "restarted"
    assert reply(engine)["choices"][0]["text"] == "I am two"
