"""A small program that behaves like vLLM's server where supervision is concerned. Run by tests as a child process.

``stand_in_engine.py FOLDER NAME PORT``: answers with the text in FOLDER/answer.txt, keeps a child of its own (its
"engine core", whose end makes /health say 503) and swaps FOLDER through vLLM's admin routes. FOLDER/crash makes it
end at once; FOLDER/no_reload makes it refuse to swap. As a model it is a ``toy_model``: the template is that of the
folder it was started with, the weights are those of the folder it has now. FOLDER/slow_proof makes it wait there for
FOLDER/go before it says what it thinks likely.

A chat answer is ``max_tokens`` words, each FOLDER/answer.txt as it is when the word is made, ``gap_s`` (a field of the
request) apart: weights that change in the middle can be seen. A streamed one waits after its first word while there is
FOLDER/hold. Pausing waits for the answers under way, and later ones wait for the resumption. With ENGINE_LORA in the
environment it loads LoRA adapters: folders like FOLDER. FOLDER/fails makes that share of the answers a 500.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import toy_model

folder, name, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if (folder / "crash").exists():
    sys.exit("no such tensor")
core = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
(folder / f"core.{port}").write_text(str(core.pid))
(folder / f"core.{port}").rename(folder / "core.pid")  # never seen half written
steps = []
started_with = folder
adapters: dict[str, Path] = {}
turn = threading.Condition()
running, paused, answered = 0, False, 0


@contextmanager
def scheduled() -> Iterator[None]:
    """Counts as running, and doesn't begin while the engine is paused."""
    global running
    with turn:
        turn.wait_for(lambda: not paused)
        running += 1
    try:
        yield
    finally:
        with turn:
            running -= 1
            turn.notify_all()


def pause() -> None:
    global paused
    with turn:
        paused = True
        turn.wait_for(lambda: running == 0 or not paused)


def resume() -> None:
    global paused
    with turn:
        paused = False
        turn.notify_all()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        listed = {"data": [{"id": name, "max_model_len": 200}]} if self.path == "/v1/models" else {}
        if listed:
            listed["data"] += [{"id": adapter, "parent": name, "max_model_len": None} for adapter in adapters]
        self._answer(200 if core.poll() is None else 503, listed)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        if self.path in ("/v1/completions", "/v1/chat/completions", "/tokenize"):
            self._ask(asked)
            return
        steps.append(self.path)
        if self.path.endswith("_lora_adapter"):
            self._change_adapters(asked)
            return
        if self.path.startswith("/pause"):
            pause()
        elif self.path == "/resume":
            resume()
        self._answer(500 if self.path == "/collective_rpc" and not swap(asked) else 200, {})

    def _ask(self, asked: dict) -> None:
        model = asked.get("model", name)
        if model != name and model not in adapters:
            self._answer(404, {"error": {"message": f"The model `{model}` does not exist."}})
        elif self.path == "/tokenize":
            self._answer(200, {"tokens": toy_model.render(started_with, asked["messages"])})
        elif self.path == "/v1/completions":
            self._complete(asked, adapters.get(model, folder))
        else:
            with scheduled():
                self._chat(asked, model)

    def _complete(self, asked: dict, own: Path) -> None:
        choice: dict[str, object] = {"text": (own / "answer.txt").read_text()}
        if "prompt_logprobs" in asked:
            while (own / "slow_proof").exists() and not (own / "go").exists():
                time.sleep(0.01)
            choice["prompt_logprobs"] = toy_model.prompt_logprobs(own, asked["prompt"], asked["prompt_logprobs"])
        self._answer(200, {"choices": [choice], "steps": steps})

    def _chat(self, asked: dict, model: str) -> None:
        global answered
        answered += 1
        own = adapters.get(model, folder)
        share = float((own / "fails").read_text()) if (own / "fails").exists() else 0.0
        if int(answered * share) > int((answered - 1) * share):
            self._answer(500, {"error": {"message": "CUDA error: an illegal memory access"}})
            return
        words, usage = int(asked.get("max_tokens", 3)), {"prompt_tokens": 5}
        usage["completion_tokens"] = words
        if not asked.get("stream"):
            said = [self._word(asked, model) for _ in range(words)]
            message = {"role": "assistant", "content": " ".join(said)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._answer(200, {"model": model, "choices": [choice], "usage": usage})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(words):
            while number and (own / "hold").exists():
                time.sleep(0.01)
            self._event(json.dumps({"choices": [{"index": 0, "delta": {"content": self._word(asked, model) + " "}}]}))
        self._event(json.dumps({"choices": [], "usage": usage}))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _word(self, asked: dict, model: str) -> str:
        time.sleep(asked.get("gap_s", 0.0))
        return (adapters.get(model, folder) / "answer.txt").read_text()

    def _event(self, text: str) -> None:
        data = f"data: {text}\n\n".encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _change_adapters(self, asked: dict) -> None:
        adapter = asked["lora_name"]
        if not os.environ.get("ENGINE_LORA"):
            self._answer(404, {"detail": "Not Found"})
        elif self.path == "/v1/unload_lora_adapter":
            found = adapters.pop(adapter, None)
            self._answer(404 if found is None else 200, {"error": {"message": "no such adapter"}})
        elif not (Path(asked["lora_path"]) / "adapter_config.json").exists():
            self._answer(404, {"error": {"message": f"Loading lora {adapter} failed: No adapter found"}})
        else:
            adapters[adapter] = Path(asked["lora_path"])
            self._answer(200, {})

    def _answer(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


def swap(asked: dict) -> bool:
    global folder
    if (folder / "no_reload").exists():
        return False
    folder = Path(asked["kwargs"]["weights_path"])
    return True


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


Server(("127.0.0.1", port), Handler).serve_forever()
