"""lm-eval, where it is installed, really runs a task of ours through the gateway; where it isn't, the job says so."""

import importlib.util
import json
import threading

import pytest

from textmill.errors import JobFailed
from textmill_inference.evaluation import lm_eval

installed = importlib.util.find_spec("lm_eval") is not None
TASK = """
task: lines_of_hexagrams
dataset_path: json
dataset_kwargs:
  data_files: {test: %s}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 16}
metric_list:
  - {metric: exact_match, ignore_case: true}
metadata: {version: 1}
"""


@pytest.mark.skipif(installed, reason="lm-eval is installed")
def test_without_lm_eval_the_job_says_what_to_install():
    with pytest.raises(JobFailed, match=r"pip install 'lm_eval\[api\]'"):
        lm_eval.run_tasks("http://127.0.0.1:9", "", "small", ["gsm8k"], None, threading.Event())


@pytest.mark.slow
@pytest.mark.skipif(not installed, reason="needs lm-eval")
def test_a_task_of_ours_goes_through_the_gateway(gateway, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    rows = [{"question": "How many?", "answer": "Seven has six lines"}, {"question": "And?", "answer": "Eight"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "lines.yaml").write_text(TASK % (tmp_path / "rows.jsonl"))
    scores = lm_eval.run_tasks(
        gateway.url, "", "small", ["lines_of_hexagrams"], None, threading.Event(), tmp_path / "tasks"
    )
    assert scores["lines_of_hexagrams", "exact_match"] == 0.5
    asked = [body["messages"][-1]["content"] for body in gateway.engine.bodies]
    assert sorted(asked) == ["And?", "How many?"]


@pytest.mark.slow
@pytest.mark.skipif(not installed, reason="needs lm-eval")
def test_an_unknown_task_fails_with_what_lm_eval_said(gateway):
    with pytest.raises(JobFailed, match="no_such_task"):
        lm_eval.run_tasks(gateway.url, "", "small", ["no_such_task"], None, threading.Event())


def test_scores_are_read_by_task_and_metric(tmp_path):
    results = {"gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": 0.1}}
    results["ifeval"] = {"acc,none": 1, "acc_stderr,none": "N/A", "sample_len": 8}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results_2026.json").write_text(json.dumps({"results": results}))
    assert lm_eval.read_scores(tmp_path) == {("gsm8k", "exact_match,strict-match"): 0.25, ("ifeval", "acc"): 1.0}
    with pytest.raises(JobFailed, match="no results"):
        lm_eval.read_scores(tmp_path / "nowhere")


def test_the_key_is_not_among_the_arguments(tmp_path):
    arguments = lm_eval.command("http://gateway:8100", "small", ["a", "b"], 5, tmp_path, None)
    assert "a,b" in arguments
    assert arguments[arguments.index("--limit") + 1] == "5"
    assert "base_url=http://gateway:8100/v1/chat/completions" in arguments[arguments.index("--model_args") + 1]
    assert "--include_path" not in arguments
