"""What each objective adds to a run: how its source becomes examples, what a step minimizes, who watches it.

Supervised records are prepared by ``stages`` itself; here are raw text and preference pairs.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from textmill.contracts.datasets import Split
from textmill_trainer.batches import collate, pack
from textmill_trainer.loop import plain_model
from textmill_trainer.masking import encode_pairs_with_proof
from textmill_trainer.objective import Objective
from textmill_trainer.preference import Preference, PreferenceWatch, reference_log_probs
from textmill_trainer.pretrain import encode_texts, read_texts
from textmill_trainer.sampling import Sampler
from textmill_trainer.supervised import Supervised

if TYPE_CHECKING:
    from textmill_trainer.stages import Run

_SPLITS: tuple[Split, Split] = ("train", "eval")


def encode_source(run: "Run") -> None:
    """Fill a run's examples from raw text, or its pairs; of a pair the chosen answer is then its example."""
    job, lines = run.job, run.folder.lines
    if job.objective == "pretrain":
        run.examples, run.eval_examples = (
            encode_texts(read_texts(lines(split)), run.tokenizer, job.max_tokens) for split in _SPLITS
        )
        return
    pairs, run.masking = encode_pairs_with_proof(run.folder, run.tokenizer, job.max_tokens)
    run.pairs, run.eval_pairs = (pairs[split] for split in _SPLITS)
    run.examples, run.eval_examples = ([pair.chosen for pair in pairs] for pairs in (run.pairs, run.eval_pairs))


def objective_of(run: "Run") -> tuple[Objective[Any], Sequence[Any]]:
    """What the loop minimizes and over which examples. Called once the model is loaded and before it is trained."""
    job, packing = run.job, run.packing
    lay_out = partial(pack, share=packing.shared) if packing.packed else collate
    if job.objective == "dpo":
        every = [*run.pairs, *run.eval_pairs]
        cache = run.folder.root / "references.json"
        references = reference_log_probs(run.model, every, run.settings.max_padded_tokens, cache, lay_out)
        run.preference = Preference(job.dpo_beta, references, lay_out)
        run.observers.append(PreferenceWatch(run.preference, run.eval_pairs, run.folder))
        return run.preference, run.pairs
    if job.objective == "pretrain" and job.sample_prompts:
        sampler = Sampler(plain_model(run.model), run.tokenizer, job.sample_prompts, run.folder, job.seed)
        run.observers.append(sampler)
    return Supervised(lay_out), run.examples
