"""LoRA adapters on an engine that is a real child process: loaded, held to their probe, and back after a crash."""

import os
import signal

import pytest
from tests.inference import toy_model
from tests.inference.stand_in import NEVER, QUICK, StandIn, core_of, model

from textmill.errors import DependencyDown, JobFailed
from textmill_inference.engine.adapters import Adapters
from textmill_inference.engine.openai_api import EngineApi
from textmill_inference.engine.supervisor import LocalEngine


def adapter(tmp_path, name, published="7", actual="7"):
    folder = model(tmp_path, name)
    (folder.path / "adapter_config.json").write_text("{}")
    (folder.path / "weights.txt").write_text(published)
    (folder.path / "parity.json").write_text(toy_model.probe(folder.path, ["one?", "two?"]))
    (folder.path / "weights.txt").write_text(actual)
    return folder


@pytest.fixture
def engine(tmp_path):
    made = LocalEngine("base", StandIn(lora=True), tmp_path / "engine.log", QUICK)
    made.serve(model(tmp_path, "base"), NEVER)
    yield made
    made.stop()


def test_an_adapter_is_loaded_and_held_to_its_probe(tmp_path, engine):
    assert not engine.knows("tuned@1")
    check = engine.load_adapter("tuned@1", adapter(tmp_path, "one"))
    assert (check.tokens, check.top1_exact) == (16, 1.0)
    assert engine.knows("tuned@1")
    assert engine.knows("base")
    assert engine.load_adapter("tuned@1", adapter(tmp_path, "again")) is None
    assert engine.parity is None


def test_an_adapter_that_is_not_what_was_published_is_refused_and_unloaded(tmp_path, engine):
    with pytest.raises(JobFailed, match=r"nats a token off the published model's.*trained beside quantized weights"):
        engine.load_adapter("tuned@1", adapter(tmp_path, "one", actual="8"))
    assert not engine.knows("tuned@1")
    assert not EngineApi(engine.url, "tuned@1").answers()


def test_adapters_are_back_after_a_crash_before_the_engine_is_ready(tmp_path, engine, waits):
    engine.load_adapter("tuned@1", adapter(tmp_path, "one"))
    engine.load_adapter("other@1", adapter(tmp_path, "two"))
    (tmp_path / "two" / "adapter_config.json").unlink()
    core = core_of(engine.folder)
    os.kill(core, signal.SIGKILL)
    engine.suspect()
    waits(lambda: core_of(engine.folder) != core and engine.ready, "the engine to be back")
    assert engine.knows("tuned@1")
    assert EngineApi(engine.url, "tuned@1").answers()
    assert not engine.knows("other@1")


def test_an_unloaded_adapter_is_gone_and_stays_gone(tmp_path, engine):
    engine.load_adapter("tuned@1", adapter(tmp_path, "one"))
    engine.unload_adapter("tuned@1")
    engine.unload_adapter("never was")
    assert not engine.knows("tuned@1")
    assert not EngineApi(engine.url, "tuned@1").answers()


def test_an_engine_without_room_for_adapters_says_which_setting_makes_it(tmp_path):
    engine = LocalEngine("base", StandIn(), tmp_path / "engine.log", QUICK)
    try:
        with pytest.raises(DependencyDown, match="doesn't answer now"):
            engine.load_adapter("tuned@1", adapter(tmp_path, "one"))
        engine.serve(model(tmp_path, "base"), NEVER)
        with pytest.raises(JobFailed, match="TEXTMILL_INFERENCE_ENGINE_MAX_ADAPTERS"):
            engine.load_adapter("tuned@1", adapter(tmp_path, "two"))
    finally:
        engine.stop()


def test_an_engine_that_is_gone_loses_no_adapter(tmp_path):
    adapters = Adapters("base")
    with pytest.raises(DependencyDown):
        adapters.load("http://127.0.0.1:1", "tuned@1", adapter(tmp_path, "one"))
    adapters.unload("http://127.0.0.1:1", "tuned@1")
