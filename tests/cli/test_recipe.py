"""A recipe's mistakes are named before anything starts: line, what is allowed, the nearest right word."""

from pathlib import Path

import pytest

from textmill.contracts.base import new_id
from textmill.contracts.jobs import CrawlJob, LoadtestJob, SynthJob, TrainJob
from textmill.errors import BadRequest
from textmill_cli.plan import chain_of
from textmill_cli.recipe import load

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "zhouyi" / "recipe.yaml"
GOOD = """\
name: handbook
sources:
  files: ["*.md"]
synthesis:
  strategies: [qa]
training:
  epochs: 1
deployment:
  name: handbook
evaluation:
  before: base
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.md").write_text("text")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def mistakes(folder: Path, text: str) -> str:
    with pytest.raises(BadRequest) as caught:
        load(write(folder, text))
    return str(caught.value)


def test_the_example_is_valid_and_names_the_whole_way() -> None:
    first = chain_of(load(EXAMPLE), [new_id("doc")])
    assert [job.kind for job in (first, *first.then)] == ["corpus", "synth", "train", "deploy", "evaluate", "loadtest"]


def test_a_wrong_key_is_named_with_line_and_nearest(folder: Path) -> None:
    message = mistakes(folder, GOOD.replace("epochs: 1", "epoch: 1"))
    assert "recipe.yaml:7: training.epoch: unknown key" in message
    assert "did you mean 'epochs'?" in message
    assert "learning_rate" in message


def test_a_wrong_value_is_named_with_what_is_allowed(folder: Path) -> None:
    message = mistakes(folder, GOOD.replace("[qa]", "[qa, sumary]"))
    assert "recipe.yaml:5: synthesis.strategies.1: 'sumary' is not allowed — did you mean 'summary'?" in message
    assert "allowed: qa, pairs, bridge, summary, styles" in message


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    message = mistakes(folder, GOOD.replace("epochs: 1", "epochs: 0").replace("[qa]", "[qq]") + "speed: 3\n")
    assert [line.split(":")[1] for line in message.splitlines()] == ["5", "7", "12"]


def test_a_stage_without_the_one_before_is_refused(folder: Path) -> None:
    message = mistakes(folder, GOOD.replace("training:\n  epochs: 1\n", ""))
    assert "'deployment' needs the section 'training'" in message


def test_a_pattern_without_files_is_refused(folder: Path) -> None:
    assert "'*.txt' matches no file" in mistakes(folder, GOOD.replace("*.md", "*.txt"))


def test_a_recipe_without_sources_is_refused(folder: Path) -> None:
    assert "names neither files nor urls" in mistakes(folder, "name: x\nsources: {}\n")


def test_broken_yaml_and_missing_files_are_told(folder: Path) -> None:
    assert "is no YAML" in mistakes(folder, "name: [")
    with pytest.raises(BadRequest, match="no file"):
        load(folder / "none.yaml")
    assert "no file" in mistakes(folder, GOOD.replace("[qa]", "[qa]\n  questions: [none.yaml]"))


def test_a_mistake_in_a_question_file_is_told_with_its_own_line(folder: Path) -> None:
    (folder / "q.yaml").write_text("language: en\nsubject: x\nquestions:\n  - id: a\n    key: k\n    asks: [q]\n")
    message = mistakes(folder, GOOD.replace("[qa]", "[qa]\n  questions: [q.yaml]"))
    assert "q.yaml:6: questions.0.asks: unknown key — did you mean 'ask'?" in message


def test_the_chain_carries_its_ids_from_stage_to_stage(folder: Path) -> None:
    text = GOOD + "loadtest:\n  concurrencies: [1, 2]\n"
    text = text.replace('files: ["*.md"]', 'files: ["*.md"]\n  urls: ["http://127.0.0.1/x"]')
    first = chain_of(load(write(folder, text)), [new_id("doc")])
    assert isinstance(first, CrawlJob)
    corpus, synth, train, deploy, evaluate, load_test = first.then
    assert isinstance(synth, SynthJob)
    assert isinstance(train, TrainJob)
    assert isinstance(load_test, LoadtestJob)
    assert corpus.crawl_ids == (first.crawl_id,)  # type: ignore[union-attr]
    assert synth.corpus_id == corpus.corpus_id  # type: ignore[union-attr]
    assert train.dataset_id == synth.dataset_id
    assert deploy.model_id == train.model_id  # type: ignore[union-attr]
    assert evaluate.after == load_test.model == "handbook"  # type: ignore[union-attr]


def test_raw_text_is_trained_on_without_a_dataset(folder: Path) -> None:
    text = GOOD.partition("synthesis:")[0] + "training: {objective: pretrain}\ndeployment: {name: handbook}\n"
    corpus = chain_of(load(write(folder, text)), [new_id("doc")])
    train, deploy = corpus.then
    assert isinstance(train, TrainJob)
    assert (train.corpus_id, train.dataset_id) == (corpus.corpus_id, None)  # type: ignore[union-attr]
    assert deploy.model_id == train.model_id  # type: ignore[union-attr]
    assert "'evaluation' asks the questions" in mistakes(folder, text + "evaluation: {before: base}\n")
    assert "makes no preference pairs" in mistakes(folder, GOOD.replace("epochs: 1", "objective: dpo"))


def test_a_recipe_may_end_early(folder: Path) -> None:
    first = chain_of(load(write(folder, "name: x\nsources:\n  files: ['*.md']\n")), [new_id("doc")])
    assert first.then == ()


NESTED = [
    ("asking:\n    quotas: {typoo: 2}", "recipe.yaml:7: synthesis.asking.quotas.typoo: 'typoo' is not allowed"),
    ("budget:\n    max_cals: 3", "recipe.yaml:7: synthesis.budget.max_cals: unknown key — did you mean 'max_calls'?"),
    ("budget: {max_cost: 3}", "recipe.yaml:6: synthesis.budget: 'max_cost' needs 'prices'"),
    ("judge: {modell: x}", "recipe.yaml:6: synthesis.judge.modell: unknown key — did you mean 'model'?"),
    ("evolutions: [deepr]", "recipe.yaml:6: synthesis.evolutions.0: 'deepr' is not allowed — did you mean 'deeper'?"),
    ("tools: [{name: f, description: d}]", "recipe.yaml:6: synthesis.tools.0.parameters: missing"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "message"), NESTED)
def test_a_mistake_deep_in_synthesis_is_named_with_its_line(folder: Path, section: str, message: str) -> None:
    assert message in mistakes(folder, GOOD.replace("[qa]", f"[qa]\n  {section}"))


def test_a_tools_schema_may_be_written_in_yaml(folder: Path) -> None:
    tool = "tools: [{name: f, description: d, parameters: {type: object}}]"
    synthesis = load(write(folder, GOOD.replace("[qa]", f"[qa]\n  {tool}"))).synthesis
    assert synthesis is not None
    assert synthesis.tools[0].parameters == '{"type": "object"}'
