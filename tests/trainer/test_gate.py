"""Nothing is published that isn't the trained model, and the report says how near it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.conftest import make_records
from tests.trainer.test_merge import CPU, trained, with_adapter
from torch.nn.functional import log_softmax

from textmill.contracts.gates import Closeness, MergeCandidate, MergedInto
from textmill.contracts.training import Method
from textmill.errors import JobFailed
from textmill_trainer import gate
from textmill_trainer.batches import collate
from textmill_trainer.gate import (
    COMPARED_RECORDS,
    COMPARED_TOKENS,
    Trained,
    compared_examples,
    kl_divergence_sum,
    load_published,
    pass_gate,
    short_form,
)
from textmill_trainer.loop import plain_model
from textmill_trainer.loss import supervised_logits
from textmill_trainer.merge import merge
from textmill_trainer.model import load_16bit, load_full
from textmill_trainer.prepare import Example, encode_all


@pytest.fixture(scope="session")
def examples(tokenizer: Any) -> list[Example]:
    return encode_all(make_records(6), tokenizer, 100)


def passed(model: Any, base: Path, target: Path, examples: list[Example], method: Method, max_kl: float = 1e-3) -> Any:
    report, loaded = pass_gate(model, base, target, examples, method=method, max_kl=max_kl, max_padded_tokens=64)
    # What is handed on is what lies on disk.
    again = load_published(target, CPU)
    assert torch.equal(supervised_logits(again, collate(examples)), supervised_logits(loaded, collate(examples)))
    return report


def test_an_nf4_adapter_is_published_in_the_base_it_was_trained_beside(
    tiny_base: Path, examples: list[Example], tmp_path: Path
) -> None:
    report = passed(trained(tiny_base, "dequantized"), tiny_base, tmp_path / "merged", examples, "qlora")
    assert [c.into for c in report.candidates] == ["nf4", "16bit"]
    near, far = report.candidates
    assert report.published == near
    assert near.mean_kl < 1e-4 < far.mean_kl < report.base.mean_kl
    assert report.tokens == sum(sum(e.supervised[1:]) for e in examples)
    assert report.records == 6
    assert f"{near.mean_kl:.1e} nats a token, against {far.mean_kl:.1e}" in report.why
    assert short_form(report).into == "nf4"
    assert short_form(report).kl_to_base == report.base.mean_kl


def test_candidates_are_screened_on_a_few_and_the_published_one_measured_on_all(
    tiny_base: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "SCREENED_RECORDS", 2)
    many = encode_all(make_records(8), tokenizer, 100)
    model = trained(tiny_base, "dequantized")
    report = passed(model, tiny_base, tmp_path / "merged", many, "qlora")
    published = load_published(tmp_path / "merged", CPU)
    for measured, compared in ((report.candidates[0], many[:2]), (report.published, many)):
        reference = Trained(plain_model(model), [collate(compared)]).closeness(published)
        assert measured.nll == pytest.approx(reference.nll, rel=1e-3)
    assert report.candidates[0].nll != pytest.approx(report.published.nll, rel=1e-3)


def test_the_nearer_candidate_is_published_whichever_it_is(
    tiny_base: Path, examples: list[Example], tmp_path: Path
) -> None:
    """An adapter beside 16-bit weights, called QLoRA's: the live weights are then both bases."""
    model = with_adapter(load_16bit(tiny_base, CPU), "lora")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "base_layer.weight" in name:
                weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    assert passed(model, tiny_base, tmp_path / "one", examples, "qlora").published.into == "nf4"
    again = with_adapter(load_16bit(tiny_base, CPU), "lora")
    assert passed(again, tiny_base, tmp_path / "two", examples, "lora").published.into == "16bit"


def test_all_weights_trained_pass_the_same_gate(tiny_base: Path, examples: list[Example], tmp_path: Path) -> None:
    model = load_full(tiny_base, CPU)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    report = passed(model, tiny_base, tmp_path / "saved", examples, "full")
    assert report.published.into == "saved"
    assert report.candidates == []
    assert report.published.mean_kl < 1e-3 < report.base.mean_kl


def test_a_model_that_learnt_nothing_is_refused_before_anything_is_written(
    tiny_base: Path, examples: list[Example], tmp_path: Path
) -> None:
    model = trained(tiny_base, "dequantized")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data *= 1e-6
    with pytest.raises(JobFailed, match=r"training changed nothing: .*less than 1e-06 counts as nothing"):
        passed(model, tiny_base, tmp_path / "merged", examples, "qlora")
    assert not (tmp_path / "merged").exists()


def test_what_is_lost_in_rounding_is_refused() -> None:
    published = MergeCandidate(into="nf4", mean_kl=2e-5, top1_agreement=1.0, nll=1.0)
    gate._refuse_another_model(published, Closeness(mean_kl=3e-5, top1_agreement=1.0, nll=1.0), max_kl=1e-2)
    with pytest.raises(
        JobFailed, match=r"no nearer to the trained one \(mean KL 2.0e-05 .* than the base is \(1.0e-05\)"
    ):
        gate._refuse_another_model(published, Closeness(mean_kl=1e-5, top1_agreement=1.0, nll=1.0), max_kl=1e-2)


def test_another_model_than_was_trained_is_refused(
    tiny_base: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files on disk are what counts, not the candidate that was measured in memory."""

    def merge_wrongly(model: Any, base: Path, target: Path, into: MergedInto) -> None:
        wrong = trained(base, "nf4")
        wrong.get_submodule("base_model.model.model.layers.0.mlp.down_proj.lora_B.default").weight.data.normal_()
        merge(wrong, base, target, into)

    monkeypatch.setattr(gate, "merge", merge_wrongly)
    with pytest.raises(JobFailed, match=r"not the trained one: mean KL .* merge_max_kl is 1.0e-03"):
        passed(trained(tiny_base, "dequantized"), tiny_base, tmp_path / "merged", examples, "qlora")


def test_numbers_that_are_none_are_refused(tiny_base: Path, examples: list[Example], tmp_path: Path) -> None:
    model = trained(tiny_base, "dequantized")
    model.get_submodule("base_model.model.model.layers.1.mlp.up_proj.lora_B.default").weight.data[0, 0] = float("nan")
    with pytest.raises(JobFailed, match="the trained model's loss is nan"):
        passed(model, tiny_base, tmp_path / "merged", examples, "qlora")


def test_numbers_that_bf16_cannot_hold_are_refused(
    tiny_base: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = gate.load_published

    def damaged(folder: Path, device: torch.device) -> Any:
        model: Any = real(folder, device)
        model.get_submodule("model.norm").weight.data[0] = float("inf")
        return model

    monkeypatch.setattr(gate, "load_published", damaged)
    with pytest.raises(JobFailed, match="gives NaN or infinite numbers"):
        passed(trained(tiny_base, "dequantized"), tiny_base, tmp_path / "merged", examples, "qlora")


def test_kl_is_that_of_the_distributions() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(3, 50), torch.randn(3, 50)
    p, q = log_softmax(ours.double(), -1), log_softmax(theirs.double(), -1)
    assert kl_divergence_sum(ours, theirs) == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-5)
    assert kl_divergence_sum(ours, ours) == 0


def test_a_model_is_no_distance_from_itself(tiny_base: Path, examples: list[Example]) -> None:
    model = load_16bit(tiny_base, CPU)
    close = Trained(model, [collate(examples)]).closeness(model)
    assert (close.mean_kl, close.top1_agreement) == (0, 1)


def test_both_splits_are_compared_evenly_and_within_bounds() -> None:
    def many(split: str, count: int) -> list[Example]:
        return [Example(f"{split}{n}", "d", (1,) * 60, (False,) * 20 + (True,) * 40) for n in range(count)]

    chosen = compared_examples(many("e", 100), many("t", 1000))
    assert COMPARED_TOKENS - 40 < 40 * len(chosen) <= COMPARED_TOKENS
    assert len(compared_examples(many("e", 100), [])) == len(chosen)
    brief = [Example(f"b{n}", "d", (1, 1), (False, True)) for n in range(200)]
    assert len(compared_examples(brief, brief)) == COMPARED_RECORDS
    train = [int(e.record_id[1:]) for e in chosen if e.record_id[0] == "t"]
    assert len(train) == pytest.approx(len(chosen) / 2, abs=1)
    assert max(b - a for a, b in zip(sorted(train), sorted(train)[1:], strict=False)) < 100
    assert len(compared_examples([], many("t", 3))) == 3
    long = Example("long", "d", (1,) * 5000, (True,) * 5000)
    assert compared_examples([], [long]) == [long]
