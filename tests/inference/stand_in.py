"""What tests of engines and rollouts share: the stand-in engine's launcher, its models, and a look at its processes."""

import contextlib
import json
import os
import sys
import threading
import urllib.request
from pathlib import Path

from textmill_inference.engine.launcher import Care
from textmill_inference.engine.port import ModelFolder

HERE = Path(__file__).parent
QUICK = Care(
    start_timeout_s=60,
    look_every_s=0.05,
    probe_every_s=0.02,
    first_backoff_s=0.02,
    max_backoff_s=0.5,
    stop_grace_s=2,
    swap_drain_s=60,
    drain_s=60,
)
NEVER = threading.Event()


class StandIn:
    """Starts ``stand_in_engine.py``. ``full`` is why there is no room for another one."""

    def __init__(self, lora=False, full=""):
        self.lora = lora
        self.full = full

    def command(self, folder, name, port):
        return [sys.executable, "-I", "-S", str(HERE / "stand_in_engine.py"), str(folder), name, str(port)]

    def environment(self):
        return dict(os.environ) | ({"ENGINE_LORA": "1"} if self.lora else {})

    def no_room(self, folder):
        return self.full


def model(tmp_path, name, shape=1):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_size": shape, "_name_or_path": name}))
    (folder / "answer.txt").write_text(f"I am {name}")
    return ModelFolder(folder, name)


def reply(engine):
    request = urllib.request.Request(f"{engine.url}/v1/completions", b"{}", {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def chat(url, model, words=3, gap_s=0.0, on_word=lambda word: None):
    """A streamed chat answer; raises if it broke off or was refused."""
    body = {"model": model, "messages": [], "max_tokens": words, "gap_s": gap_s, "stream": True}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    said, done = "", False
    with urllib.request.urlopen(request, timeout=60) as response:
        for line in response:
            data = line.removeprefix(b"data: ").strip()
            done = done or data == b"[DONE]"
            for choice in json.loads(data)["choices"] if line.startswith(b"data: {") else ():
                on_word(choice["delta"]["content"])
                said += choice["delta"]["content"]
    assert done, f"the answer broke off after {said!r}"
    return said


def is_running(pid):
    """False for a zombie, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def core_of(folder):
    return int((folder.path / "core.pid").read_text())


def server_of(engine):
    """The pid of the program under the guard."""
    port = engine.url.rpartition(":")[2]
    return next(pid for pid, command in _stand_ins() if command.split()[-1] == port)


def _stand_ins():
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
                if "stand_in_engine.py" in command and "guard.py" not in command:
                    yield int(entry.name), command
