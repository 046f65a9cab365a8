"""Models as a trainer publishes them, and engines without a process, for tests of rollouts."""

import hashlib
import json
import threading

from textmill.contracts.gates import ParityCheck
from textmill.contracts.runs import Lineage, MergeCheck, ModelManifest, TrainingSummary

ONE, TWO, THREE = ("mdl_" + digit * 32 for digit in "123")
BASE = b"base weights"
PARITY = ParityCheck(
    conversations=1, prompts_identical=1, prompts_compared=1, tokens=9, top1_exact=1, top1_agreement=1, ties=0,
    tie_nats=0.1, mean_logprob_difference=0.01, max_logprob_difference=0.1, seconds=1,
)  # fmt: skip


def publish(store, model_id, files=None, base=BASE, adapter=True):
    """``files`` are those of the merged model; its config is the model's id unless they say otherwise."""
    files = {"config.json": model_id.encode()} | {k: v.encode() for k, v in (files or {}).items()}
    for name, data in files.items():
        store.put(f"models/{model_id}/files/{name}", data)
    prefix = f"runs/run_{model_id}/adapter/"
    if adapter:
        store.put(f"{prefix}adapter_config.json", b"{}")
        store.put(f"{prefix}adapter_model.safetensors", b"adapter of " + model_id.encode())
        for name in {"answer.txt", "weights.txt"} & files.keys():
            store.put(prefix + name, files[name])
    summary = TrainingSummary(
        steps=1, epochs=1, first_loss=1, final_loss=1, eval_loss_before=None, eval_loss_after=None, tokens=1,
        tokens_per_s=1, seconds=1, resumed_from_step=0, device="cpu",
    )  # fmt: skip
    lineage = Lineage(
        run_id="r", dataset_id="d", document_ids=(), base_model="b", base_sha256=hashlib.sha256(base).hexdigest()
    )
    manifest = ModelManifest(
        model_id=model_id, name="m", prefix=f"models/{model_id}/files", adapter_prefix=prefix if adapter else None,
        metrics_key="", files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        merge=MergeCheck(mean_kl=0, top1_agreement=1, tokens=1), training=summary, lineage=lineage,
    )  # fmt: skip
    store.put(f"models/{model_id}/manifest.json", manifest.to_json())


def config(shape=1):
    return json.dumps({"hidden_size": shape})


class FakeEngine:
    """``swaps`` says whether it takes other weights in place, ``error`` what it raises when it is to serve."""

    url = "http://127.0.0.1:1"
    parity = PARITY

    def __init__(self, name, label, engines):
        self.name, self.label, self.trouble, self.swaps = name, label, "", True
        self.folder, self.ready, self.stopped = None, False, False
        self.error = engines.error if engines is not None else None
        self.hold = engines.hold if engines is not None else None
        self.adapters = {}

    def suspect(self):
        pass

    def knows(self, model):
        return model == self.name or model in self.adapters

    def load_adapter(self, model, folder):
        self.adapters[model] = folder
        return PARITY

    def unload_adapter(self, model):
        self.adapters.pop(model, None)

    def swap(self, folder, stopping):
        return self.serve(folder, stopping) if self.swaps and self.ready else None

    def serve(self, folder, stopping):
        if self.hold is not None:
            self.hold.wait(60)
        if self.error:
            raise self.error
        if stopping.is_set():
            return None
        kind = "started" if self.folder is None else "in_place"
        self.folder, self.ready = folder, True
        return kind

    def stop(self):
        self.ready, self.stopped = False, True


class FakeEngines:
    """Makes them. ``error`` and ``hold`` are given to those that are made later; ``full`` leaves no room for more."""

    def __init__(self):
        self.made = []
        self.error = None
        self.hold: threading.Event | None = None
        self.full = ""

    def make(self, name, label):
        self.made.append(FakeEngine(name, label, self))
        return self.made[-1]

    def no_room(self, folder):
        return self.full
