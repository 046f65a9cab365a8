"""The distance to the base is exact and starts at zero; replay is the base's own answers, and counted apart."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from textmill.errors import JobFailed
from textmill_trainer import forgetting as forgetting_module
from textmill_trainer.forgetting import (
    Forgetting,
    answer,
    is_replay,
    keep_examples,
    read_prompts,
    replay_examples,
)
from textmill_trainer.model import LoraSettings, add_lora, load_full, load_nf4

CPU = torch.device("cpu")
PROMPTS = ["What is the capital of France?", "三加五等于多少？", "Name three fruits."]


@pytest.fixture
def adapted(tiny_base: Path) -> Any:
    """With an adapter that does something."""
    model = add_lora(load_nf4(tiny_base, CPU), LoraSettings(4, 8, 0.0), seed=1)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.train(False)
    return model


def test_our_prompts_are_in_two_languages_and_two_lists_that_share_nothing() -> None:
    prompts = read_prompts()
    assert len(prompts.measured) == len(set(prompts.measured)) == 32
    assert len(prompts.replayed) == len(set(prompts.replayed)) == 48
    assert not set(prompts.measured) & set(prompts.replayed)
    assert sum(not p.isascii() for p in prompts.measured) == 10


def test_an_owners_prompts_come_besides(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("measured:\n  - How do I reset the router?\n")
    assert read_prompts(tmp_path / "more.yaml").measured[-1] == "How do I reset the router?"
    assert len(read_prompts(tmp_path / "more.yaml").replayed) == 48


@pytest.mark.parametrize(
    ("text", "why"), [("asked: [x]", "measured and replayed"), ("measured: [x]\nreplayed: [x]", "both measured and")]
)
def test_a_file_that_will_not_do_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "more.yaml").write_text(text)
    with pytest.raises(JobFailed, match=why):
        read_prompts(tmp_path / "more.yaml")


def test_answers_are_the_bases_greedy_ones_whatever_the_batch(adapted: Any, tokenizer: Any) -> None:
    together = answer(adapted, tokenizer, PROMPTS, 5)
    alone = [answer(adapted, tokenizer, [prompt], 5)[0] for prompt in PROMPTS]
    assert [e.token_ids for e in together] == [e.token_ids for e in alone]
    example = together[0]
    start = example.supervised.index(True)
    assert tokenizer.decode(example.token_ids[:start]).endswith("France?<|im_end|>\n<|im_start|>assistant\n")
    core = adapted.get_base_model()
    with torch.no_grad(), adapted.disable_adapter():
        likeliest = core(torch.tensor([example.token_ids])).logits[0].argmax(-1).tolist()
    assert tuple(likeliest[start - 1 : -1]) == example.token_ids[start:]
    with torch.no_grad():
        tuned = core(torch.tensor([example.token_ids])).logits[0].argmax(-1).tolist()
    assert tuned != likeliest, "the adapter changes nothing, so this test can't tell the base from the tuned model"


def test_padding_is_not_seen(tiny_base: Path, tokenizer: Any) -> None:
    """With weights so large that what a token attends to decides what follows."""
    model = load_full(tiny_base, CPU)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter.mul_(20)
    together = answer(model, tokenizer, PROMPTS, 5)
    assert [e.token_ids for e in together] == [answer(model, tokenizer, [p], 5)[0].token_ids for p in PROMPTS]


@pytest.mark.parametrize("kept_bytes", [1 << 30, 0])
def test_kl_is_that_of_the_whole_vocabulary_kept_or_computed_again(
    adapted: Any, tokenizer: Any, kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting_module, "KEPT_BYTES", kept_bytes)
    general = answer(adapted, tokenizer, PROMPTS, 5)
    core, total, tokens = adapted.get_base_model(), 0.0, 0
    for example in general:
        at = torch.tensor(example.supervised[1:])
        with torch.no_grad():
            tuned = log_softmax(core(torch.tensor([example.token_ids])).logits[0, :-1][at].float(), -1)
            with adapted.disable_adapter():
                base = log_softmax(core(torch.tensor([example.token_ids])).logits[0, :-1][at].float(), -1)
        total += kl_div(tuned, base, reduction="sum", log_target=True).item()
        tokens += len(base)
    forgetting = Forgetting(adapted, general, budget=0.5)
    assert forgetting.mean_kl() == pytest.approx(total / tokens, rel=1e-2)
    assert forgetting.mean_kl() > 1e-4


def test_an_adapter_that_does_nothing_forgets_nothing(tiny_base: Path, tokenizer: Any) -> None:
    model = add_lora(load_nf4(tiny_base, CPU), LoraSettings(4, 8, 0.0), seed=1)
    assert Forgetting(model, answer(model, tokenizer, PROMPTS, 4), 0.5).mean_kl() == 0.0


def test_where_all_weights_are_trained_the_start_is_kept(tiny_base: Path, tokenizer: Any) -> None:
    model = load_full(tiny_base, CPU)
    forgetting = Forgetting(model, answer(model, tokenizer, PROMPTS, 4), 0.5)
    assert forgetting.mean_kl() == 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert forgetting.mean_kl() > 1e-4


@pytest.mark.parametrize(("share", "records", "wanted"), [(0.25, 30, 10), (0.5, 3, 3), (0.01, 10, 0)])
def test_replay_makes_up_its_share_of_an_epoch(
    tiny_base: Path, tokenizer: Any, share: float, records: int, wanted: int
) -> None:
    model = load_full(tiny_base, CPU)
    replayed = replay_examples(model, tokenizer, PROMPTS, records, share)
    assert len(replayed) == len({e.record_id for e in replayed}) == wanted
    assert all(is_replay(e.record_id) for e in replayed)
    assert len({e.token_ids for e in replayed}) == min(wanted, len(PROMPTS))


def test_replay_is_made_once_a_run(tiny_base: Path, tokenizer: Any, tmp_path: Path) -> None:
    model = load_full(tiny_base, CPU)
    made = keep_examples(tmp_path / "replay.json", lambda: replay_examples(model, tokenizer, PROMPTS, 3, 0.5))
    assert keep_examples(tmp_path / "replay.json", lambda: pytest.fail("made again")) == made
