"""A model for other programs: the job that writes it in another format, and the files of what is there.

The adapter and the merged weights are files of the model already; only GGUF has to be made, which reads and writes the
whole model and so is a job, with a job's retries and its one commit. No torch.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from textmill.contracts.base import Contract
from textmill.contracts.exports import ExportManifest
from textmill.contracts.jobs import ExportJob, Output
from textmill.errors import NotFound
from textmill.store import ObjectStore
from textmill.worker import JobContext
from textmill_trainer.gguf_file import write_gguf
from textmill_trainer.runstore import download, upload_folder
from textmill_trainer.stored import StoredModels


class ModelFile(Contract):
    name: str
    size_bytes: int


class ExportHandler:
    """Does one job. Raises ``NotFound``, and ``JobFailed`` for a model that can't be written in this format."""

    def __init__(self, work_folder: Path) -> None:
        self._work_folder = work_folder

    def __call__(self, job: ExportJob, context: JobContext) -> Output:
        model = StoredModels(context.store).manifest(job.model_id)
        self._work_folder.mkdir(parents=True, exist_ok=True)
        # A folder that ends in its process's id is swept once that is dead.
        with tempfile.TemporaryDirectory(prefix="export-", suffix=f"-{os.getpid()}", dir=self._work_folder) as root:
            source, made = Path(root, "model"), Path(root, "made")
            made.mkdir()
            for done, name in enumerate(model.files):
                context.raise_if_stopped()
                context.progress("fetching the model", done, len(model.files), "files")
                download(context.store, model.prefix + name, source / name)
            context.progress("converting")
            write_gguf(source, made / f"{model.name}.gguf", model.name)
            context.raise_if_stopped()
            context.progress("uploading")
            prefix = f"{_exports_prefix(job.model_id)}{job.export_id}/attempt-{context.attempt}/"
            files = upload_folder(context.store, made, prefix)
        manifest = ExportManifest(
            export_id=job.export_id, model_id=job.model_id, format=job.format, prefix=prefix, files=files
        )
        return Output(
            manifest_key=_manifest_key(job.model_id, job.export_id), manifest=manifest.model_dump(mode="json")
        )


class StoredFiles:
    """What of a model can be fetched."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._models = StoredModels(store)

    def adapter_prefix(self, model_id: str) -> str:
        """Raises ``NotFound``, also for a model that was trained without one."""
        prefix = self._models.manifest(model_id).adapter_prefix
        if prefix is None:
            raise NotFound(f"model {model_id!r} has no adapter: all its weights were trained; fetch them from /merged")
        return prefix

    def merged_prefix(self, model_id: str) -> str:
        return self._models.manifest(model_id).prefix

    def exports(self, model_id: str) -> list[ExportManifest]:
        self._models.manifest(model_id)
        keys = [i.key for i in self._store.list(_exports_prefix(model_id)) if i.key.endswith("/manifest.json")]
        return [ExportManifest.model_validate_json(self._store.get(key)) for key in keys]

    def export_prefix(self, model_id: str, export_id: str) -> str:
        try:
            data = self._store.get(_manifest_key(model_id, export_id))
        except NotFound as exc:
            raise NotFound(f"model {model_id!r} has no export {export_id!r}, or its job isn't done yet") from exc
        return ExportManifest.model_validate_json(data).prefix

    def files(self, prefix: str) -> list[ModelFile]:
        found = ((i.key.removeprefix(prefix), i.size_bytes) for i in self._store.list(prefix))
        return [ModelFile(name=name, size_bytes=size) for name, size in found if "/" not in name]

    def stream(self, prefix: str, name: str) -> tuple[int, Iterator[bytes]]:
        """A file's size and its bytes. Raises ``NotFound``."""
        sizes = {f.name: f.size_bytes for f in self.files(prefix)}
        if name not in sizes:
            raise NotFound(f"no file {name!r} here; there are: {', '.join(sizes) or 'none'}")
        return sizes[name], self._store.stream(prefix + name)


def _exports_prefix(model_id: str) -> str:
    return f"models/{model_id}/exports/"


def _manifest_key(model_id: str, export_id: str) -> str:
    return f"{_exports_prefix(model_id)}{export_id}/manifest.json"
