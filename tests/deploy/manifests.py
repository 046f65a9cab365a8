"""Built manifests and what is true of them: schemas, and for custom resources ours."""

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from deploy_tools import ROOT, kubectl

Resource = dict[str, Any]
KUBERNETES = "1.37"
K8S = ROOT / "deploy" / "k8s"
OVERLAYS = ("local", "gpu", "production")
_CUSTOM: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("custom_resources.yaml").read_text())


@cache
def build(overlay: str) -> tuple[Resource, ...]:
    """What ``kubectl apply -k`` would send, with the Job template that the trainer makes runs of."""
    return build_folder(K8S / "overlays" / overlay)


def build_folder(folder: Path) -> tuple[Resource, ...]:
    done = subprocess.run(
        [kubectl(), "kustomize", str(folder)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    resources = [resource for resource in yaml.safe_load_all(done.stdout) if resource]
    templates = [r["data"]["job.yaml"] for r in resources if r["kind"] == "ConfigMap" and "job.yaml" in r["data"]]
    return (*resources, *(_as_made(yaml.safe_load(text)) for text in templates))


def of_kind(resources: tuple[Resource, ...], kind: str) -> dict[str, Resource]:
    return {r["metadata"]["name"]: r for r in resources if r["kind"] == kind}


def pod_template(resource: Resource) -> Resource | None:
    if resource["kind"] not in {"Deployment", "StatefulSet", "DaemonSet", "Job"}:
        return None
    template: Resource = resource["spec"]["template"]
    return template


def schema_faults(resource: Resource) -> list[str]:
    """What Kubernetes, or our schema of a custom resource, would refuse."""
    key = f"{resource['apiVersion']}/{resource['kind']}"
    if key in _CUSTOM:
        schema = {
            "$defs": _CUSTOM["$defs"], "type": "object", "required": ["apiVersion", "kind", "metadata", "spec"],
            "additionalProperties": False,
            "properties": {
                "apiVersion": {}, "kind": {}, "metadata": {"$ref": "#/$defs/metadata"}, "spec": _CUSTOM[key],
            },
        }  # fmt: skip
        return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(resource)]
    try:
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return [f"no schema of {key}: write one in tests/deploy/custom_resources.yaml"]
    except kubernetes_validate.ValidationError as exc:
        return [str(exc.message)]
    return []


def _as_made(job: Resource) -> Resource:
    job["metadata"] |= {"name": "training-template", "namespace": "textmill"}
    return job
