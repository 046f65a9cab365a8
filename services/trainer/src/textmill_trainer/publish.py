"""Names a trained model and writes its card. Knows no store."""

from datetime import datetime
from pathlib import Path

from textmill.contracts.base import utc_now
from textmill.contracts.datasets import DatasetManifest
from textmill.contracts.jobs import TrainJob
from textmill.contracts.runs import Lineage, ModelManifest
from textmill_trainer.workfolder import TrainResult


def model_name(base_model: str, epochs: int, made_at: datetime) -> str:
    """Base, epochs and time: ``smollm2-135m-instruct-e8-20260131-142501``."""
    base = Path(base_model).name.lower()
    return f"{base}-e{epochs}-{made_at:%Y%m%d-%H%M%S}"


def make_lineage(job: TrainJob, dataset: DatasetManifest, base_model: str, base_sha256: str) -> Lineage:
    return Lineage(
        run_id=job.run_id,
        dataset_id=dataset.dataset_id,
        corpus_id=dataset.corpus_id,
        document_ids=dataset.document_ids,
        base_model=base_model,
        base_sha256=base_sha256,
    )


def make_manifest(
    job: TrainJob, lineage: Lineage, result: TrainResult, prefix: str, adapter_prefix: str, metrics_key: str
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
        created_at=made_at,
    )


def model_card(job: TrainJob, manifest: ModelManifest, dataset: DatasetManifest) -> str:
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

{Path(lineage.base_model).name}, fine-tuned by textmill on {dataset.records.get("train", 0)} records made from
{len(lineage.document_ids)} documents. QLoRA (NF4, double quantization), merged into the dequantized NF4 base, bf16.

| | |
|---|---|
| steps, epochs | {training.steps}, {training.epochs:g} |
| learning rate, batch | {job.learning_rate:g}, {job.batch_size} |
| LoRA rank, alpha, dropout | {job.rank}, {job.alpha}, {job.dropout:g} |
| seed | {job.seed} |
| loss, first to last step | {training.first_loss:.3f} to {training.final_loss:.3f} nats per token |
| eval loss | {eval_loss} |
| tokens trained, per second | {training.tokens}, {training.tokens_per_s:.0f} |
| time on device | {training.seconds:.0f} s on {training.device} |
| resumed from step | {training.resumed_from_step} |
| merged against the adapter | mean KL {merge.mean_kl:.2e} nats, top-1 agreement {merge.top1_agreement:.2%} |
| tokens compared | {merge.tokens} |

## Lineage

- model `{manifest.model_id}`, run `{lineage.run_id}`
- dataset `{lineage.dataset_id}`, corpus `{lineage.corpus_id}`
- base weights sha256 `{lineage.base_sha256}`
- documents: {", ".join(f"`{d}`" for d in lineage.document_ids)}
"""
