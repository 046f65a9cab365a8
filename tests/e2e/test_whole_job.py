"""The main job on real parts, as its users see it: the command line, the report, the OpenAI client, plain libraries."""

import asyncio
import json
from pathlib import Path

import openai
import pytest
from installation import Installation, Tuned, manifest
from recipes import small_recipe, write_recipe

from textmill.contracts.jobs import JobView

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]
STAGES = ["corpus", "synth", "train", "deploy", "evaluate", "loadtest"]


def test_every_stage_succeeds_at_the_first_attempt(tuned: Tuned) -> None:
    views = [JobView.model_validate(job) for job in tuned.jobs]
    assert [(v.job.kind, v.state, v.attempts) for v in views] == [(stage, "succeeded", 1) for stage in STAGES]


def test_no_record_is_lost_or_invented(tuned: Tuned) -> None:
    dataset = manifest(tuned.jobs, "synth")
    counts = dataset["counts"]
    assert counts["requested"] == counts["accepted"] + counts["rejected"] + counts["dead_lettered"]
    assert counts["accepted"] == 6  # two hexagrams, three questions, each answered by the LLM or by the text itself
    assert dataset["records"]["heldout"] == 12
    assert dataset["records"]["train"] == 108


def test_an_answer_leads_back_to_its_sentence(installation: Installation, tuned: Tuned) -> None:
    dataset_id = manifest(tuned.jobs, "synth")["dataset_id"]
    page = json.loads(installation.get("synth", f"/v1/datasets/{dataset_id}/records?split=train&limit=108"))
    for record in page["items"]:
        raw = installation.get("ingest", f"/v1/documents/{record['document_id']}/raw")
        span = record["evidence_span"]
        assert raw[span["byte_start"] : span["byte_end"]].decode() == record["evidence"]
        assert raw.decode()[span["char_start"] : span["char_end"]] == record["evidence"]


def test_the_report_says_what_the_services_stored(installation: Installation, tuned: Tuned, tmp_path: Path) -> None:
    report = installation.output("report", tuned.first_job, "--out", str(tmp_path))
    dataset, model = manifest(tuned.jobs, "synth"), manifest(tuned.jobs, "train")
    evaluation = manifest(tuned.jobs, "evaluate")
    metrics = [
        json.loads(line)
        for line in installation.get("trainer", f"/v1/runs/{model['lineage']['run_id']}/metrics").splitlines()
    ]
    steps = [m for m in metrics if m["kind"] == "step"]
    for name in ("requested", "accepted", "rejected", "dead_lettered"):
        assert report["records"][name] == dataset["counts"][name]
    assert report["accuracy"]["before"] == evaluation["before"]["accuracy"]
    assert report["accuracy"]["after"] == evaluation["after"]["accuracy"]
    right = sum(a["correct"] for a in evaluation["after"]["answers"])
    assert report["accuracy"]["after"] == pytest.approx(right / len(evaluation["after"]["answers"]))
    assert report["training"]["steps"] == len(steps)
    assert report["training"]["final_loss"] == pytest.approx(steps[-1]["loss"])
    assert report["training"]["tokens"] == sum(s["tokens"] for s in steps)
    assert [level["concurrency"] for level in report["loadtest"]["levels"]] == [1, 4]
    page = (tmp_path / "report.html").read_text()
    # Loss and throughput; latency where enough requests were answered to claim a percentile.
    claimed = [v for v in report["loadtest"]["levels"] if v["ttft_ms"] and v["ttft_ms"]["p50"] is not None]
    assert page.count("<svg") == (3 if claimed else 2)
    assert evaluation["after"]["answers"][0]["key_facts"][0] in page


def test_the_base_model_does_not_know_and_training_lowers_the_loss(tuned: Tuned) -> None:
    evaluation, model = manifest(tuned.jobs, "evaluate"), manifest(tuned.jobs, "train")
    assert evaluation["before"]["accuracy"] < 0.10
    assert model["training"]["final_loss"] < model["training"]["first_loss"] / 2
    assert model["merge"]["mean_kl"] < 1e-3


def test_the_openai_client_chats_with_the_tuned_model(installation: Installation, tuned: Tuned) -> None:
    with openai.OpenAI(base_url=installation.gateway, api_key="none") as client:
        assert {"zhouyi", "smollm2-135m"} <= {model.id for model in client.models.list()}
        messages = [{"role": "user", "content": "Which lines of hexagram 7, Shi, are solid?"}]
        whole = client.chat.completions.create(model="zhouyi", messages=messages, temperature=0, max_tokens=24)  # type: ignore[call-overload]
        stream = client.chat.completions.create(  # type: ignore[call-overload]
            model="zhouyi", messages=messages, temperature=0, max_tokens=24, stream=True
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert whole.choices[0].message.content
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 3


def test_the_async_client_is_answered_too(installation: Installation, tuned: Tuned) -> None:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=installation.gateway, api_key="none") as client:
            answer = await client.completions.create(
                model="zhouyi", prompt="Hexagram 7 is", max_tokens=4, temperature=0
            )
        return answer.choices[0].text

    assert asyncio.run(ask())


def test_an_unknown_model_is_refused_by_name(installation: Installation) -> None:
    with (
        openai.OpenAI(base_url=installation.gateway, api_key="none", max_retries=0) as client,
        pytest.raises(openai.NotFoundError, match="smollm2-135m"),
    ):
        client.chat.completions.create(model="gpt-none", messages=[{"role": "user", "content": "hi"}])


def test_the_dataset_opens_with_plain_datasets(installation: Installation, tuned: Tuned, tmp_path: Path) -> None:
    import datasets

    made = manifest(tuned.jobs, "synth")
    store = installation.store()
    files = {}
    for split in ("train", "heldout"):
        path = tmp_path / f"{split}.parquet"
        path.write_bytes(store.get(made["records_keys"][split]))
        files[split] = str(path)
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert {name: rows.num_rows for name, rows in loaded.items()} == {"train": 108, "heldout": 12}
    assert loaded["train"][0]["messages"][-1]["role"] == "assistant"
    trained = {row["messages"][0]["content"] for row in loaded["train"]}
    assert not trained & {row["messages"][0]["content"] for row in loaded["heldout"]}


def test_the_adapter_opens_with_plain_peft(installation: Installation, tuned: Tuned, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from textmill_cli.local.stack import base_model_folder

    prefix = manifest(tuned.jobs, "train")["adapter_prefix"]
    store = installation.store()
    for item in store.list(prefix):
        (tmp_path / item.key.removeprefix(prefix)).write_bytes(store.get(item.key))
    base = AutoModelForCausalLM.from_pretrained(base_model_folder())
    tuned_model = PeftModel.from_pretrained(base, tmp_path)
    assert any("lora_" in name for name, _ in tuned_model.named_parameters())


def test_the_chinese_half_goes_the_whole_way(installation: Installation, tmp_path: Path) -> None:
    """All sixty-four in Chinese, copied from the text; trained for a few steps, which is enough to walk every part."""
    recipe = small_recipe(
        "zh",
        ["*.md"],
        synthesis={"strategies": ["passage"]},
        training={"max_steps": 6, "epochs": 1},
        evaluation={"max_questions": 6},
    )
    del recipe["loadtest"]
    recipe["name"] = "zhouyi-zh"
    recipe["deployment"] = {"name": "zhouyi"}
    jobs = installation.run_recipe(write_recipe(tmp_path, recipe))
    assert [job["state"] for job in jobs] == ["succeeded"] * 5
    dataset = manifest(jobs, "synth")
    assert manifest(jobs, "corpus")["languages"] == {"zh": 64}
    assert dataset["counts"]["accepted"] == 64 * 3
    assert dataset["records"] == {"train": 64 * 3 * 18, "eval": 0, "heldout": 64 * 3 * 2}
    question = manifest(jobs, "evaluate")["after"]["answers"][0]["question"]
    assert any("一" <= letter <= "鿿" for letter in question)
    with openai.OpenAI(base_url=installation.gateway, api_key="none") as client:
        answer = client.chat.completions.create(
            model="zhouyi", messages=[{"role": "user", "content": question}], temperature=0, max_tokens=24
        )
    assert answer.choices[0].message.content


def test_up_finds_the_first_and_down_is_the_only_end(installation: Installation) -> None:
    first = {p["name"]: p["pid"] for p in installation.output("status")["processes"]}
    again = installation.output("up", "--detach")
    assert {p["name"]: p["pid"] for p in again} == first


def test_status_logs_and_jobs_speak_json(installation: Installation, tuned: Tuned) -> None:
    status = installation.output("status")
    assert all(process["ready"] for process in status["processes"])
    assert status["jobs"]
    assert installation.output("logs", "synth")
    assert installation.output("jobs", "show", tuned.first_job)["state"] == "succeeded"
    assert installation.output("chat", "hello", "--model", "smollm2-135m")["smollm2-135m"]


def test_the_logs_hold_no_private_text(installation: Installation, tuned: Tuned) -> None:
    private = "disciplin"
    for log in installation.settings.logs.glob("*.log"):
        assert private not in log.read_text(errors="replace"), log.name
