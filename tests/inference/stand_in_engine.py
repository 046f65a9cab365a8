"""A small program that behaves like vLLM's server where supervision is concerned. Run by tests as a child process.

``stand_in_engine.py FOLDER NAME PORT``: answers with the text in FOLDER/answer.txt, keeps a child of its own (its
"engine core", whose end makes /health say 503) and swaps FOLDER through vLLM's admin routes. FOLDER/crash makes it
end at once; FOLDER/no_reload makes it refuse to swap.
"""

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

folder, name, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if (folder / "crash").exists():
    sys.exit("no such tensor")
core = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
(folder / "core.pid").write_text(str(core.pid))
steps = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(200 if core.poll() is None else 503, {})

    def do_POST(self) -> None:
        global folder
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status = 200
        if self.path == "/collective_rpc":
            if (folder / "no_reload").exists():
                status = 500
            else:
                folder = Path(json.loads(body)["kwargs"]["weights_path"])
        if self.path != "/v1/completions":
            steps.append(self.path)
        self._answer(status, {"choices": [{"text": (folder / "answer.txt").read_text()}], "steps": steps})

    def _answer(self, status: int, value: dict[str, object]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
