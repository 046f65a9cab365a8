"""A small API server on loopback that runs Jobs as processes of this machine: no cluster can run in a test.

It speaks the routes that the trainer uses, as the API reference has them, checks each Job against Kubernetes' own
schema and the token, and turns exit codes into conditions
by the Job's podFailurePolicy. There is no scheduler in it and no
kubelet.
"""

import json
import subprocess
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate

Resource = dict[str, Any]
TOKEN = "token-of-the-pod"


@dataclass
class Cluster:
    """``refuse`` answers every call with that status. ``made`` are all Jobs ever made, ``asked`` all requests."""

    jobs: dict[str, Resource] = field(default_factory=dict)
    made: list[Resource] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    refuse: int = 0
    reason: str = ""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)

    def create(self, job: Resource) -> tuple[int, Resource]:
        name = job["metadata"]["name"]
        if name in self.jobs:
            return 409, {"message": f'jobs.batch "{name}" already exists'}
        kubernetes_validate.validate(job, "1.37", strict=True)
        container = job["spec"]["template"]["spec"]["containers"][0]
        self.processes[name] = subprocess.Popen([*container["command"], *container["args"]])
        self.jobs[name] = job
        self.made.append(job)
        return 201, job

    def job(self, name: str) -> tuple[int, Resource]:
        if name not in self.jobs:
            return 404, {"message": f'jobs.batch "{name}" not found'}
        code = self.processes[name].poll()
        return 200, {**self.jobs[name], "status": {} if code is None else self._status(self.jobs[name], code)}

    def delete(self, name: str) -> tuple[int, Resource]:
        if self.jobs.pop(name, None) is None:
            return 404, {"message": "not found"}
        self.processes[name].terminate()
        return 200, {}

    def pods(self, job_name: str) -> tuple[int, Resource]:
        process = self.processes.get(job_name)
        gone = (
            process is None or job_name in self.forgotten or (job_name not in self.jobs and process.poll() is not None)
        )
        return 200, {"items": [] if gone else [_pod(job_name, process)]}  # type: ignore[arg-type]

    def kill(self, pod_name: str) -> tuple[int, Resource]:
        self.processes[pod_name.removesuffix("-pod")].kill()
        return 200, {}

    def listed(self, selector: str) -> tuple[int, Resource]:
        key, _, value = selector.partition("=")
        return 200, {"items": [job for job in self.jobs.values() if job["metadata"]["labels"].get(key) == value]}

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    @staticmethod
    def _status(job: Resource, code: int) -> Resource:
        if code == 0:
            return {"conditions": [{"type": "Complete", "status": "True"}]}
        rules = job["spec"]["podFailurePolicy"]["rules"]
        fails = any(code in r.get("onExitCodes", {}).get("values", []) for r in rules if r["action"] == "FailJob")
        reason = "PodFailurePolicy" if fails else "BackoffLimitExceeded"
        return {"conditions": [{"type": "Failed", "status": "True", "reason": reason}]}


def _pod(job_name: str, process: subprocess.Popen[bytes]) -> Resource:
    code = process.poll()
    state: Resource = {"running": {}}
    if code is not None:
        exit_code = 128 - code if code < 0 else code  # as a shell, and the kubelet, tell of a signal
        state = {"terminated": {"exitCode": exit_code, "reason": "Error", "finishedAt": "2026-01-01T00:00:00Z"}}
    return {"metadata": {"name": f"{job_name}-pod"}, "status": {"containerStatuses": [{"state": state}]}}


class ApiServer:
    """Serves ``cluster`` until ``stop``."""

    def __init__(self, cluster: Cluster) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(cluster))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("GET")

        def do_POST(self) -> None:
            self._answer("POST")

        def do_DELETE(self) -> None:
            self._answer("DELETE")

        def _answer(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = urlsplit(self.path)
            cluster.asked.append(f"{method} {parts.path}")
            status, answer = self._route(method, parts.path, parse_qs(parts.query), json.loads(body or b"{}"))
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _route(self, method: str, path: str, query: dict[str, list[str]], body: Resource) -> tuple[int, Resource]:
            if cluster.refuse:
                return cluster.refuse, {"message": cluster.reason}
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                return 401, {"message": "Unauthorized"}
            jobs, pods = "/apis/batch/v1/namespaces/textmill/jobs", "/api/v1/namespaces/textmill/pods"
            name, selector = path.rpartition("/")[2], query.get("labelSelector", [""])[0]
            match method, path.removesuffix(f"/{name}") if name not in ("jobs", "pods") else path:
                case "POST", place if place == jobs:
                    return cluster.create(body)
                case "GET", place if place == jobs:
                    return cluster.listed(selector) if name == "jobs" else cluster.job(name)
                case "DELETE", place if place == jobs:
                    return cluster.delete(name)
                case "GET", place if place == pods:
                    return cluster.pods(selector.removeprefix("batch.kubernetes.io/job-name="))
                case "DELETE", place if place == pods:
                    return cluster.kill(name)
            return 404, {"message": f"no route {method} {path}"}

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
