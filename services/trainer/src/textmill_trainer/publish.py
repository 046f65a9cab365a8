"""Names a trained model and writes its card. Knows no store."""

from datetime import datetime
from pathlib import Path

from textmill.contracts.anomalies import AnomalyCounts
from textmill.contracts.base import utc_now
from textmill.contracts.jobs import TrainJob
from textmill.contracts.masking import MaskingSummary
from textmill.contracts.runs import Lineage, MergeCheck, ModelManifest, TrainingSummary
from textmill_trainer.sources import TrainingSource
from textmill_trainer.workfolder import TrainResult


def model_name(base_model: str, epochs: int, made_at: datetime) -> str:
    """Base, epochs and time: ``smollm2-135m-instruct-e8-20260131-142501``."""
    base = Path(base_model).name.lower()
    return f"{base}-e{epochs}-{made_at:%Y%m%d-%H%M%S}"


def make_lineage(job: TrainJob, source: TrainingSource, base_model: str, base_sha256: str) -> Lineage:
    return Lineage(
        run_id=job.run_id,
        dataset_id=source.dataset_id,
        corpus_id=source.corpus_id,
        preferences_id=source.preferences_id,
        document_ids=source.document_ids,
        base_model=base_model,
        base_sha256=base_sha256,
    )


def make_manifest(
    job: TrainJob, lineage: Lineage, result: TrainResult, prefix: str, adapter_prefix: str | None, metrics_key: str
) -> ModelManifest:
    """All but ``files``, which are known once they are uploaded."""
    made_at = utc_now()
    return ModelManifest(
        model_id=job.model_id,
        name=model_name(lineage.base_model, job.epochs, made_at),
        prefix=prefix,
        files={},
        adapter_prefix=adapter_prefix,
        metrics_key=metrics_key,
        merge=result.merge,
        training=result.training,
        lineage=lineage,
        verdict=result.verdict,
        masking=result.masking,
        anomalies=result.anomalies,
        created_at=made_at,
    )


def model_card(job: TrainJob, manifest: ModelManifest, source: TrainingSource) -> str:
    """The README.md beside the weights: what it is, where it comes from, what was measured."""
    training, merge, lineage = manifest.training, manifest.merge, manifest.lineage
    eval_loss = (
        f"{training.eval_loss_before:.3f} before, {training.eval_loss_after:.3f} after"
        if training.eval_loss_before is not None and training.eval_loss_after is not None
        else "no eval split"
    )
    return f"""---
base_model: {Path(lineage.base_model).name}
library_name: transformers
pipeline_tag: text-generation
---
# {manifest.name}

{Path(lineage.base_model).name}, fine-tuned by textmill on {source.described}.
{_how(job)}

| | |
|---|---|
| steps, epochs | {training.steps}, {training.epochs:g} |
| learning rate, batch | {_rate(job, training)}, {job.batch_size} |
| LoRA rank, alpha, dropout | {training.rank or job.rank}, {job.alpha}, {job.dropout:g} |
| seed | {job.seed} |
| loss, first to last step | {training.first_loss:.3f} to {training.final_loss:.3f} nats per token |
| eval loss | {eval_loss} |
| verdict | {_verdict(manifest)} |
| tokens trained, per second | {training.tokens}, {training.tokens_per_s:.0f} |
| loss taken on | {_masking(manifest.masking)} |
| records that stood out | {_anomalies(manifest.anomalies)} |
| time on device | {training.seconds:.0f} s on {training.device} |
| resumed from step | {training.resumed_from_step} |
| weights from step | {training.best_step or training.steps} |
| last digest of the run | `{training.digest}` |
| published against trained | {_merge(merge)} |

## Lineage

- model `{manifest.model_id}`, run `{lineage.run_id}`
- {_came_from(lineage)}
- base weights sha256 `{lineage.base_sha256}`
- documents: {", ".join(f"`{d}`" for d in lineage.document_ids)}
"""


def _masking(masking: MaskingSummary | None) -> str:
    if masking is None:
        return "all tokens"
    return (
        f"the answers: {masking.supervised_tokens} of {masking.tokens} tokens an epoch, each answer up to and with "
        f"{' or '.join(f'`{token}`' for token in masking.end_of_turn)}"
    )


def _anomalies(found: AnomalyCounts | None) -> str:
    if found is None or not found.judged:
        return "not judged"
    left_out = f"; {found.left_out} were left out" if found.left_out else ""
    return (
        f"{found.suspected} suspected, {found.confirmed} confirmed, {found.cleared} cleared, by their loss among their "
        f"like; {found.spikes} steps spiked{left_out}"
    )


def _verdict(manifest: ModelManifest) -> str:
    found = manifest.verdict
    if found is None:
        return "not judged"
    forgets = " It is over its forgetting budget on general prompts." if found.forgets else ""
    return f"**{found.verdict}**: {found.sentence}{forgets}"


def _rate(job: TrainJob, training: TrainingSummary) -> str:
    """The number, and how it was found where the owner left it open."""
    rate = training.learning_rate if training.learning_rate is not None else job.learning_rate
    found = f" ({job.learning_rate})" if isinstance(job.learning_rate, str) else ""
    return f"{rate if isinstance(rate, str) else format(rate, 'g')}{found}"


def _merge(merge: MergeCheck) -> str:
    into = {"nf4": "into the dequantized NF4 weights, ", "16bit": "into the 16-bit weights, "}.get(merge.into or "", "")
    return (
        f"{into}mean KL {merge.mean_kl:.2e} nats, top-1 agreement {merge.top1_agreement:.2%} on {merge.tokens} tokens"
    )


def _how(job: TrainJob) -> str:
    """Objective and method in words."""
    objective = {
        "supervised": "Supervised fine-tuning",
        "pretrain": "Continued pretraining on raw text",
        "dpo": f"Direct preference optimization, beta {job.dpo_beta:g}",
    }[job.objective]
    adapter = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA"}[job.adapter]
    method = {
        "qlora": f"{adapter} beside NF4 weights (double quantization), merged, bf16",
        "lora": f"{adapter} beside 16-bit weights, merged, bf16",
        "full": "all weights in fp32, rounded to bf16",
    }[job.method]
    return f"{objective}: {method}."


def _came_from(lineage: Lineage) -> str:
    ids = {"dataset": lineage.dataset_id, "corpus": lineage.corpus_id, "preferences": lineage.preferences_id}
    return ", ".join(f"{name} `{found}`" for name, found in ids.items() if found is not None)
