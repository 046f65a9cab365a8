"""A service's process before it serves: what a signal does to it while it waits for its backends."""

import os
import signal
import subprocess
import sys

from tests.ports import any_free

WAITS = """
from textmill.service import open_backends
from textmill.settings import ServiceSettings
open_backends("test", ServiceSettings())
"""


def test_sigterm_ends_a_service_that_waits_for_its_store() -> None:
    """By a handler of its own, hence 0 and not -15: process 1 of a container never sees the default one."""
    env = {
        **os.environ,
        "TEXTMILL_STORE_URL": f"http://127.0.0.1:{any_free()}",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    with subprocess.Popen([sys.executable, "-c", WAITS], env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "waiting for the object store" in line:
                break
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)  # its words are read to the end: to be cut off could cost it its code
    assert process.returncode == 0
