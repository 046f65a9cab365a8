"""Which weights a model folder holds: trainers write it into a lineage, and who serves an adapter checks it."""

import hashlib
from pathlib import Path


def weights_sha256(folder: Path) -> str:
    """SHA-256 over the safetensors files of a model folder, in name order."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
