"""Raw text: every token predicted once, no block of two documents, samples that leave the run alone."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.test_families import settings_of
from transformers import AutoTokenizer

from textmill.contracts.runs import EvalMetrics
from textmill.contracts.samples import SamplesReport
from textmill.errors import JobFailed
from textmill_trainer.loop import plain_model, train
from textmill_trainer.model import LoraSettings, load_model, load_tokenizer
from textmill_trainer.pretrain import encode_texts
from textmill_trainer.sampling import Sampler
from textmill_trainer.supervised import Supervised, mean_loss
from textmill_trainer.workfolder import RawText, WorkFolder

CPU = torch.device("cpu")
LORA = LoraSettings(rank=8, alpha=16, dropout=0.0)
TEXTS = [
    RawText(document_id="doc_a", text="The creative works sublime success, furthering through perseverance. " * 5),
    RawText(document_id="doc_b", text="天行健，君子以自強不息。\n\n地勢坤，君子以厚德載物。"),
    RawText(document_id="doc_c", text="Short."),
]


@pytest.mark.parametrize("max_tokens", [16, 17, 1_000])
def test_every_token_is_predicted_once(tokenizer: Any, max_tokens: int) -> None:
    blocks = encode_texts(TEXTS, tokenizer, max_tokens)
    for text in TEXTS:
        whole = [*tokenizer(text.text)["input_ids"], tokenizer.eos_token_id]
        mine = [b for b in blocks if b.document_id == text.document_id]
        assert [t for b in mine for t in b.token_ids[1:]] == whole[1:]
        assert mine[0].token_ids[0] == whole[0]
        assert all(before.token_ids[-1] == after.token_ids[0] for before, after in pairwise(mine))
    assert all(2 <= len(b.token_ids) <= max_tokens and all(b.supervised) for b in blocks)
    assert len({b.record_id for b in blocks}) == len(blocks)


def test_a_text_begins_as_the_tokenizer_begins_texts(tokenizer: Any, tiny_base: Path) -> None:
    beginning = AutoTokenizer.from_pretrained(tiny_base)
    beginning.backend_tokenizer.post_processor = None
    from tokenizers.processors import TemplateProcessing

    beginning.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 5)])
    [with_bos] = encode_texts(TEXTS[2:], beginning, 64)
    [without] = encode_texts(TEXTS[2:], tokenizer, 64)
    assert with_bos.token_ids == (5, *without.token_ids)


def test_nothing_to_predict_is_said(tokenizer: Any) -> None:
    with pytest.raises(JobFailed, match="less than two tokens"):
        encode_texts([RawText(document_id="doc_a", text="")], tokenizer, 64)
    assert encode_texts([], tokenizer, 64) == []


def test_a_base_without_a_chat_template_can_read(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (folder / name).write_bytes((tiny_base / name).read_bytes())
    assert load_tokenizer(folder, chat=False).chat_template is None
    with pytest.raises(JobFailed, match="no chat template"):
        load_tokenizer(folder)


def trained(base: Path, tokenizer: Any, folder: WorkFolder, prompts: tuple[str, ...]) -> list[torch.Tensor]:
    """The weights after four steps with two evaluations."""
    torch.manual_seed(3)
    model = load_model(base, "lora", CPU, lora=LoraSettings(8, 16, 0.1), seed=0)
    core, blocks = plain_model(model), encode_texts(TEXTS, tokenizer, 64)

    def evaluate(step: int, epoch: float) -> EvalMetrics:
        return EvalMetrics(step=step, epoch=epoch, eval_loss=mean_loss(core, blocks, 512, CPU))

    observers = [Sampler(core, tokenizer, prompts, folder, seed=0)] if prompts else []
    settings = replace(settings_of(steps=4), evaluations=2)
    train(model, Supervised(), blocks, settings, folder.root, evaluate=evaluate, observers=observers)
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


def test_samples_show_the_model_change_and_change_nothing(tiny_base: Path, tokenizer: Any, tmp_path: Path) -> None:
    """With dropout, so that a random number taken by the samples would be missed by the training."""
    folder = WorkFolder(tmp_path / "with")
    prompts = ("The creative", "天行健")
    shown = trained(tiny_base, tokenizer, folder, prompts)
    silent = trained(tiny_base, tokenizer, WorkFolder(tmp_path / "without"), ())
    assert all(torch.equal(a, b) for a, b in zip(shown, silent, strict=True))
    samples = SamplesReport.model_validate_json(folder.report("samples").read_bytes()).samples
    assert [(s.step, s.prompt) for s in samples] == [(step, p) for step in (0, 2, 4) for p in prompts]
    assert samples[0].text != samples[-2].text
    assert all(s.text for s in samples)


def test_samples_take_no_random_number_of_the_run(tiny_base: Path, tokenizer: Any, tmp_path: Path) -> None:
    core = plain_model(load_model(tiny_base, "lora", CPU, lora=LORA, seed=0))
    core.train()
    before = torch.get_rng_state()
    Sampler(core, tokenizer, ("The",), WorkFolder(tmp_path), seed=0).evaluated(
        EvalMetrics(step=1, epoch=1, eval_loss=1.0)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert core.training
