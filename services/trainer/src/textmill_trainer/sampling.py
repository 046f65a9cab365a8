"""Lets the model go on from a few beginnings at each evaluation, so that its owner can read how it changes."""

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig, PreTrainedModel

from textmill.contracts.runs import EvalMetrics
from textmill.contracts.samples import Sample, SamplesReport
from textmill_trainer.observing import StepSeen
from textmill_trainer.workfolder import WorkFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NEW_TOKENS = 64
_TEMPERATURE, _TOP_K = 0.8, 200
"""nanoGPT's own: a greedy small model repeats itself, whatever it has learnt."""


class Sampler:
    """An ``Observer`` that writes the report ``samples``.

    Costs ``NEW_TOKENS`` forward passes a prompt; leaves the run's random state as it found it, so that a run with
    samples is the run without.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: "PreTrainedTokenizerFast",
        prompts: Sequence[str],
        folder: WorkFolder,
        seed: int,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._folder = folder
        self._seed = seed
        report = folder.report("samples")
        self._samples = list(SamplesReport.model_validate_json(report.read_bytes()).samples) if report.exists() else []

    def step(self, seen: StepSeen) -> None:
        pass

    def evaluated(self, metrics: EvalMetrics) -> None:
        kept = [s for s in self._samples if s.step < metrics.step]
        new = [Sample(step=metrics.step, prompt=p, text=self._go_on(p)) for p in self._prompts]
        self._samples = [*kept, *new]
        self._folder.write(self._folder.report("samples"), SamplesReport(samples=self._samples))

    @torch.no_grad()
    def _go_on(self, prompt: str) -> str:
        was_training = self._model.training
        self._model.train(False)
        ids_1T = torch.tensor([self._tokenizer(prompt)["input_ids"]], device=self._model.device)  # noqa: N806 (axes)
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=NEW_TOKENS,
            do_sample=True,
            temperature=_TEMPERATURE,
            top_k=_TOP_K,
            eos_token_id=self._tokenizer.eos_token_id,
            pad_token_id=self._tokenizer.eos_token_id,
        )
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self._seed ^ zlib.crc32(prompt.encode()))
            generated = self._model.generate(  # type: ignore[operator]
                ids_1T, attention_mask=torch.ones_like(ids_1T), generation_config=config
            )
        self._model.train(was_training)
        return str(self._tokenizer.decode(generated[0, ids_1T.shape[1] :], skip_special_tokens=True))
