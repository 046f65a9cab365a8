"""Every kind of process is killed once during one run of the demo, and the run ends well."""

import json
from pathlib import Path

import pytest
from killing import Kill, play
from recipes import small_recipe, write_recipe

KILLS = (
    Kill("synth", "synth", 0.0),
    Kill("object-store", "synth", 3.0),
    Kill("broker", "train", 1.0),
    Kill("ingest", "train", 2.0),
    Kill("training", "train", 14.0),
    Kill("trainer", "train", 30.0),
    Kill("inference", "deploy", 4.0),
    Kill("engine-core", "evaluate", 0.0),
    Kill("supervisor", "loadtest", 1.0),
)


@pytest.mark.slow
@pytest.mark.timeout(2_100)
def test_a_run_survives_the_loss_of_every_process_in_turn(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", small_recipe("en", ["07-*.md", "08-*.md"], training={"epochs": 6}))
    played = play(tmp_path / "home", recipe, tmp_path / "report", KILLS)
    print(played.output)
    assert played.exit_code == 0, played.output
    missed = {f"{kill.victim}@{kill.stage}" for kill in KILLS} - set(played.killed)
    assert not missed, "these were never killed"
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [stage["state"] for stage in report["stages"]] == ["succeeded"] * 6
    counts = report["records"]
    assert counts["requested"] == counts["accepted"] + counts["rejected"] + counts["dead_lettered"]
    assert counts["accepted"] == 6
    assert len(report["loadtest"]["levels"]) == 2
