"""Fixtures of the synth tests; makes the helpers beside them importable."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fault_llm import FaultLlm


@pytest.fixture
def llm() -> Iterator[FaultLlm]:
    """A real OpenAI-compatible server on loopback that answers from the passage it is shown."""
    with FaultLlm() as server:
        yield server
