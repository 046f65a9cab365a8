"""A published model in another program's format."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from textmill.contracts.base import StoredContract, utc_now

ExportFormat = Literal["gguf"]


class ExportManifest(StoredContract):
    """``files`` maps the name of each file under ``prefix`` to its SHA-256 in hex."""

    export_id: str
    model_id: str
    format: ExportFormat
    prefix: str
    files: dict[str, str]
    created_at: datetime = Field(default_factory=utc_now)
