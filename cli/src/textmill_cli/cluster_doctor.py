"""What is wrong with an installation elsewhere: its services, keys, store, broker, and, by kubectl, its pods."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import urllib3

from textmill.errors import TextmillError
from textmill.settings import BusSettings, StoreSettings
from textmill.store import probe
from textmill_cli.doctor import Finding
from textmill_cli.settings import SERVICES, CliSettings

_SECRETS = ("textmill-store", "textmill-tokens", "textmill-gateway")
_WAITS = 5.0


def examine_cluster(settings: CliSettings, namespace: str = "textmill") -> list[Finding]:
    """Services by their URLs (TEXTMILL_CLI_*_URL); store and broker where TEXTMILL_STORE_* and _BUS_* name them."""
    findings = [finding for name in SERVICES for finding in _service(settings, name)]
    findings += [*_gateway(settings), *_store(), *_broker()]
    return [*findings, *_kubernetes(namespace)]


def _get(url: str, token: str = "") -> tuple[int, Any]:
    """Status and JSON; status 0 and the reason where nothing answers."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = urllib3.request("GET", url, headers=headers, timeout=_WAITS, retries=False)
        return answer.status, json.loads(answer.data or b"null")
    except (urllib3.exceptions.HTTPError, ValueError) as exc:
        return 0, str(exc)


def _service(settings: CliSettings, name: str) -> Iterator[Finding]:
    url = settings.urls()[name]
    status, body = _get(f"{url}/readyz")
    if status == 0:
        variable = f"TEXTMILL_CLI_{name.upper()}_URL"
        yield Finding(name, False, f"{url} doesn't answer", f"set {variable}; kubectl port-forward, or see its pods")
        return
    checks: dict[str, str] = body.get("checks", {}) if isinstance(body, dict) else {}
    broken = "; ".join(f"{what}: {word}" for what, word in checks.items() if word != "ok")
    yield Finding(name, status == 200, broken or url, "" if status == 200 else f"mend what {name} names")
    status, _ = _get(f"{url}/v1/jobs?limit=1", settings.token.get_secret_value())
    mend = "" if status == 200 else "set TEXTMILL_CLI_TOKEN to the key 'control' of the Secret textmill-tokens"
    yield Finding(f"{name} token", status == 200, "accepted" if status == 200 else f"answered {status}", mend)


def _gateway(settings: CliSettings) -> Iterator[Finding]:
    url = settings.urls()["inference"]
    status, body = _get(f"{url}/v1/models", settings.api_key.get_secret_value())
    if status == 200 and body.get("data"):
        yield Finding("models", True, ", ".join(model["id"] for model in body["data"]))
    elif status == 401:
        yield Finding("models", False, "the gateway wants a key", "set TEXTMILL_CLI_API_KEY")
    else:
        yield Finding("models", False, "none is served", "look at the engine's pods, or deploy a model")


def _store() -> Iterator[Finding]:
    if "TEXTMILL_STORE_URL" not in os.environ:
        return
    settings = StoreSettings()
    try:
        store = settings.open()
        probe(store)
        yield Finding("object store", True, f"{settings.url} honours create-only writes")
    except TextmillError as exc:
        yield Finding("object store", False, str(exc), "check TEXTMILL_STORE_*, and the bucket's rights")


def _broker() -> Iterator[Finding]:
    if "TEXTMILL_BUS_SERVERS" not in os.environ:
        return
    bus = BusSettings().open()
    try:
        bus.check()
        yield Finding("broker", True, BusSettings().servers)
    except TextmillError as exc:
        yield Finding("broker", False, str(exc), "jobs go on without it, slower; check TEXTMILL_BUS_SERVERS")
    finally:
        bus.close()


def _kubernetes(namespace: str) -> Iterator[Finding]:
    if shutil.which("kubectl") is None:
        yield Finding("kubectl", True, "not installed: pods, volumes and secrets aren't looked at")
        return
    try:
        found = _kubectl(namespace, "pods,persistentvolumeclaims")
        names = {item["metadata"]["name"] for item in _kubectl(namespace, "secrets")}
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as exc:
        said = getattr(exc, "stderr", "") or str(exc)
        yield Finding("kubectl", False, said.strip()[:200], f"kubectl -n {namespace} get pods")
        return
    yield from (finding for item in found for finding in _look_at(item, namespace))
    for name in _SECRETS:
        if name not in names:
            yield Finding(f"secret {name}", False, "isn't there", "docs/operations/cluster.md has the command")


def _look_at(item: dict[str, Any], namespace: str) -> Iterator[Finding]:
    """A pod that isn't ready, or a claim that has no volume. What is well is silent: there may be hundreds."""
    name, status = item["metadata"]["name"], item.get("status", {})
    if item["kind"] == "PersistentVolumeClaim":
        if status.get("phase") != "Bound":
            mend = f"kubectl -n {namespace} describe pvc {name}: a class that several nodes can mount?"
            yield Finding(f"volume {name}", False, str(status.get("phase")), mend)
        return
    if status.get("phase") == "Succeeded" or _condition(status, "Ready").get("status") == "True":
        return
    yield Finding(f"pod {name}", False, _why(status), f"kubectl -n {namespace} describe pod {name}")


def _why(status: dict[str, Any]) -> str:
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        return str(scheduled.get("message", "can't be scheduled"))
    for container in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        waiting = container.get("state", {}).get("waiting")
        if waiting:
            return f"{waiting.get('reason', 'waiting')}: {waiting.get('message', '')}".strip(": ")[:200]
    return f"{status.get('phase', 'unknown')}, not ready"


def _condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((c for c in status.get("conditions", []) if c["type"] == kind), {})


def _kubectl(namespace: str, what: str) -> list[dict[str, Any]]:
    command = ["kubectl", "-n", namespace, "get", what, "-o", "json", "--request-timeout=10s"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    items: list[dict[str, Any]] = json.loads(done.stdout)["items"]
    return items
