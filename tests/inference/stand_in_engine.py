"""A small program that behaves like vLLM's server where supervision is concerned. Run by tests as a child process.

``stand_in_engine.py FOLDER NAME PORT``: answers with the text in FOLDER/answer.txt, keeps a child of its own (its
"engine core", whose end makes /health say 503) and swaps FOLDER through vLLM's admin routes. FOLDER/crash makes it
end at once; FOLDER/no_reload makes it refuse to swap. As a model it is a ``toy_model``: the template is that of the
folder it was started with, the weights are those of the folder it has now. FOLDER/slow_proof makes it wait there for
FOLDER/go before it says what it thinks likely.
"""

import json
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import toy_model

folder, name, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if (folder / "crash").exists():
    sys.exit("no such tensor")
core = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
(folder / "core.pid").write_text(str(core.pid))
steps = []
started_with = folder


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        listed = {"data": [{"id": name, "max_model_len": 200}]} if self.path == "/v1/models" else {}
        self._answer(200 if core.poll() is None else 503, listed)

    def do_POST(self) -> None:
        global folder
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status = 200
        if self.path == "/collective_rpc":
            if (folder / "no_reload").exists():
                status = 500
            else:
                folder = Path(json.loads(body)["kwargs"]["weights_path"])
        if self.path not in ("/v1/completions", "/tokenize"):
            steps.append(self.path)
        choice: dict[str, object] = {"text": (folder / "answer.txt").read_text()}
        answer: dict[str, object] = {"choices": [choice], "steps": steps}
        if self.path == "/tokenize":
            answer["tokens"] = toy_model.render(started_with, json.loads(body)["messages"])
        elif body and "prompt_logprobs" in json.loads(body):
            while (folder / "slow_proof").exists() and not (folder / "go").exists():
                time.sleep(0.01)
            asked = json.loads(body)
            choice["prompt_logprobs"] = toy_model.prompt_logprobs(folder, asked["prompt"], asked["prompt_logprobs"])
        self._answer(status, answer)

    def _answer(self, status: int, value: dict[str, object]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
