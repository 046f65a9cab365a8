"""What every pod of ours must hold to. Each policy says what is wrong, in words; none says nothing.

Where a server that isn't ours can't hold to one, ``EXEMPT`` names it, with the reason.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from manifests import Resource, pod_template

Policy = Callable[[Resource], Iterator[str]]
EXEMPT = {
    ("kafka", "read_only_root"): "the official image writes its configuration into its own folders at start",
}
_DRAIN_MARGIN_S = 10
_DEFAULT_GRACE_S = 20.0
_NEEDS_TOKEN = {"trainer-worker"}


def containers(resource: Resource) -> list[dict[str, Any]]:
    template = pod_template(resource)
    if template is None:
        return []
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def non_root(resource: Resource) -> Iterator[str]:
    context = _pod(resource).get("securityContext", {})
    if not context.get("runAsNonRoot") or not context.get("runAsUser"):
        yield "runs as root, or as whom the image says"


def seccomp(resource: Resource) -> Iterator[str]:
    if _pod(resource).get("securityContext", {}).get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"


def no_privileges(resource: Resource) -> Iterator[str]:
    for container in containers(resource):
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{container['name']} may gain privileges"
        if context.get("capabilities", {}).get("drop") != ["ALL"] or context["capabilities"].get("add"):
            yield f"{container['name']} keeps capabilities"


def read_only_root(resource: Resource) -> Iterator[str]:
    for container in containers(resource):
        if not container.get("securityContext", {}).get("readOnlyRootFilesystem"):
            yield f"{container['name']} can write to its root"


def no_host(resource: Resource) -> Iterator[str]:
    pod = _pod(resource)
    if any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield "shares the node's namespaces"
    if any("hostPath" in volume for volume in pod.get("volumes", [])):
        yield "mounts a folder of the node"


def no_token(resource: Resource) -> Iterator[str]:
    wants = resource["metadata"]["name"] in _NEEDS_TOKEN and _pod(resource)["serviceAccountName"] == "trainer-worker"
    if _pod(resource).get("automountServiceAccountToken") is not False and not wants:
        yield "has a token of the API server, which it doesn't need"


def limits(resource: Resource) -> Iterator[str]:
    for container in containers(resource):
        given = container.get("resources", {})
        if not {"cpu", "memory"} <= given.get("requests", {}).keys():
            yield f"{container['name']} requests no CPU or memory"
        if "memory" not in given.get("limits", {}):
            yield f"{container['name']} has no memory limit"
    for volume in _pod(resource).get("volumes", []):
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']} has no size limit"


def probes(resource: Resource) -> Iterator[str]:
    if resource["kind"] == "Job":
        return
    for container in _pod(resource)["containers"]:
        missing = [p for p in ("startupProbe", "readinessProbe", "livenessProbe") if p not in container]
        if missing:
            yield f"{container['name']} has no {', '.join(missing)}"


def pinned_images(resource: Resource) -> Iterator[str]:
    for container in containers(resource):
        tag = re.search(r":([^/:]+)$", container["image"])
        if "@sha256:" not in container["image"] and (tag is None or tag[1] == "latest"):
            yield f"{container['image']} has no fixed tag"


def secrets_by_reference(resource: Resource) -> Iterator[str]:
    for container in containers(resource):
        for variable in container.get("env", []):
            secret = re.search(r"TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY|CLIENT_KEY", variable["name"])
            if secret and "value" in variable and not variable["name"].startswith("TOKENIZERS"):
                yield f"{variable['name']} is written down"


def variables_once(resource: Resource) -> Iterator[str]:
    for container in containers(resource):
        names = [variable["name"] for variable in container.get("env", [])]
        for name in {name for name in names if names.count(name) > 1}:
            yield f"{name} is set twice"


def time_to_drain(resource: Resource) -> Iterator[str]:
    """The grace period is longer than the pause before the signal and the service's own drain."""
    for container in _pod(resource)["containers"]:
        env = {v["name"]: v.get("value", "") for v in container.get("env", [])}
        own = next((float(v) for name, v in env.items() if name.endswith("_GRACE_S")), _DEFAULT_GRACE_S)
        pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        grace = _pod(resource).get("terminationGracePeriodSeconds", 30)
        if grace < own + pause + _DRAIN_MARGIN_S:
            yield f"is killed after {grace} s, and takes up to {own + pause + _DRAIN_MARGIN_S:g} s to drain"


def _pod(resource: Resource) -> dict[str, Any]:
    template = pod_template(resource)
    assert template is not None
    spec: dict[str, Any] = template["spec"]
    return spec


POLICIES: tuple[Policy, ...] = (
    non_root, seccomp, no_privileges, read_only_root, no_host, no_token, limits, probes, pinned_images,
    secrets_by_reference, variables_once, time_to_drain,
)  # fmt: skip


def violations(resource: Resource) -> list[str]:
    """All that is wrong with a workload, exemptions apart. Empty for what has no pods."""
    if pod_template(resource) is None:
        return []
    name = resource["metadata"]["name"]
    return [
        f"{policy.__name__}: {name} {fault}"
        for policy in POLICIES
        for fault in policy(resource)
        if (name, policy.__name__) not in EXEMPT
    ]
