"""The few calls to Kubernetes' API server that a Job needs, over plain HTTPS with the pod's own token.

A client library would bring forty megabytes and a generated class for every kind; this needs two kinds and three verbs.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3

from textmill.errors import Conflict, DependencyDown, JobFailed, NotFound, TextmillError

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT = urllib3.Timeout(connect=3, read=15)
Resource = dict[str, Any]


@dataclass(frozen=True)
class KubernetesApi:
    """``token_file`` is read at each call: the cluster renews it. ``ca_file`` is None for plain HTTP."""

    url: str
    namespace: str
    token_file: Path
    ca_file: Path | None = None

    @classmethod
    def in_cluster(cls) -> "KubernetesApi":
        """As every pod finds it. Raises ``TextmillError`` outside a cluster, or in a pod without a token."""
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not (_ACCOUNT / "token").exists():
            raise TextmillError(
                "TEXTMILL_TRAINER_JOB_TEMPLATE makes runs Kubernetes Jobs, but this process is in no pod with a token: "
                "set automountServiceAccountToken, or leave the setting out"
            )
        host = f"[{host}]" if ":" in host else host
        namespace = (_ACCOUNT / "namespace").read_text().strip()
        return cls(f"https://{host}:{port}", namespace, _ACCOUNT / "token", _ACCOUNT / "ca.crt")

    def create_job(self, job: Resource) -> Resource:
        """Raises ``Conflict`` for a name that is taken, ``JobFailed`` for what the cluster won't have."""
        return self._call("POST", self._jobs(), body=job)

    def job(self, name: str) -> Resource:
        """Raises ``NotFound``."""
        return self._call("GET", self._jobs(name))

    def jobs(self, selector: str) -> list[Resource]:
        found: list[Resource] = self._call("GET", self._jobs(), {"labelSelector": selector})["items"]
        return found

    def delete_job(self, name: str) -> None:
        """Its pods are asked to end. What is gone already is no error."""
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        with suppress(NotFound):
            self._call("DELETE", self._jobs(name), body=options)

    def pods(self, selector: str) -> list[Resource]:
        found: list[Resource] = self._call("GET", self._pods(), {"labelSelector": selector})["items"]
        return found

    def kill_pod(self, name: str) -> None:
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}
        with suppress(NotFound):
            self._call("DELETE", self._pods(name), body=options)

    def _jobs(self, name: str = "") -> str:
        return f"/apis/batch/v1/namespaces/{self.namespace}/jobs" + (f"/{name}" if name else "")

    def _pods(self, name: str = "") -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods" + (f"/{name}" if name else "")

    def _call(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Resource | None = None
    ) -> Resource:
        headers = {"Authorization": f"Bearer {self._token()}", "Content-Type": "application/json"}
        target = f"{self.url}{path}" + (f"?{urlencode(query)}" if query else "")
        ca_certs = str(self.ca_file) if self.ca_file else None
        with urllib3.PoolManager(ca_certs=ca_certs, timeout=_TIMEOUT, retries=False) as http:
            try:
                answer = http.request(method, target, body=json.dumps(body) if body else None, headers=headers)
                return _read(answer.status, answer.data, f"{method} {path}")
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as exc:
                raise DependencyDown(f"Kubernetes' API server at {self.url}: {type(exc).__name__}: {exc}") from exc

    def _token(self) -> str:
        try:
            return self.token_file.read_text().strip()
        except OSError as exc:
            raise DependencyDown(f"no token of the API server: {exc}") from exc


def _read(status: int, data: bytes, what: str) -> Resource:
    if status == 429 or status >= 500:
        raise DependencyDown(f"Kubernetes' API server answered {status} to {what}")
    found: Resource = json.loads(data)
    if status < 300:
        return found
    message = found.get("message", "")
    if status == 404:
        raise NotFound(message)
    if status == 409:
        raise Conflict(message)
    hint = ": give the worker's account the Role training-jobs" if status in (401, 403) else ""
    raise JobFailed(f"Kubernetes refused {what} with {status}{hint}: {message}")
