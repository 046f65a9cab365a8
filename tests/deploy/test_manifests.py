"""The manifests of every overlay: they build, Kubernetes takes them, and they hold to the policies."""

import copy
import importlib.util
import ipaddress
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_tools import ROOT
from known import known_settings
from manifests import K8S, OVERLAYS, Resource, build, build_folder, of_kind, pod_template, schema_faults
from policies import EXEMPT, POLICIES, violations

from textmill.service import pace
from textmill.settings import ServiceSettings

SECRETS = {
    "textmill-store": {"access-key", "secret-key"},
    "textmill-tokens": {"control"},
    "textmill-gateway": {"client-key"},
    "textmill-llm": {"api-key"},
}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_takes_it(overlay: str) -> None:
    faults = [f"{r['kind']} {r['metadata']['name']}: {fault}" for r in build(overlay) for fault in schema_faults(r)]
    assert faults == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_it_holds_to_the_policies(overlay: str) -> None:
    assert [fault for resource in build(overlay) for fault in violations(resource)] == []


def _edit(resource: Resource, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Resource:
    broken = copy.deepcopy(resource)
    template = pod_template(broken)
    assert template is not None
    change(template["spec"], template["spec"]["containers"][0])
    return broken


BREAKS: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "non_root": lambda pod, app: pod["securityContext"].pop("runAsNonRoot"),
    "seccomp": lambda pod, app: pod["securityContext"].pop("seccompProfile"),
    "no_privileges": lambda pod, app: app["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
    "read_only_root": lambda pod, app: app["securityContext"].update(readOnlyRootFilesystem=False),
    "no_host": lambda pod, app: pod["volumes"].append({"name": "node", "hostPath": {"path": "/"}}),
    "no_token": lambda pod, app: pod.update(automountServiceAccountToken=True),
    "limits": lambda pod, app: app["resources"]["limits"].pop("memory"),
    "probes": lambda pod, app: app.pop("readinessProbe"),
    "pinned_images": lambda pod, app: app.update(image="textmill/synth:latest"),
    "secrets_by_reference": lambda pod, app: app["env"].append({"name": "TEXTMILL_SYNTH_TOKEN", "value": "x"}),
    "variables_once": lambda pod, app: app["env"].append(dict(app["env"][0])),
    "time_to_drain": lambda pod, app: pod.update(terminationGracePeriodSeconds=10),
}


@pytest.mark.parametrize("policy", [policy.__name__ for policy in POLICIES])
def test_a_broken_manifest_is_found(policy: str) -> None:
    good = of_kind(build("local"), "Deployment")["synth-worker"]
    found = violations(_edit(good, BREAKS[policy]))
    assert any(fault.startswith(f"{policy}: synth-worker ") for fault in found), found


def test_a_misspelt_field_is_found() -> None:
    deployment = copy.deepcopy(of_kind(build("local"), "Deployment")["synth-worker"])
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 5
    assert schema_faults(deployment)
    scaled = copy.deepcopy(of_kind(build("production"), "ScaledObject")["synth-worker"])
    scaled["spec"]["maxReplicas"] = 5
    assert schema_faults(scaled)
    assert schema_faults({"apiVersion": "example.org/v1", "kind": "Thing", "metadata": {"name": "a"}})


def test_exemptions_are_still_needed() -> None:
    for (name, policy), reason in EXEMPT.items():
        assert reason
        resource = of_kind(build("local"), "StatefulSet")[name]
        assert list(next(p for p in POLICIES if p.__name__ == policy)(resource)), f"{name} holds to {policy} by now"


# -- what refers to what ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_reference_leads_somewhere(overlay: str) -> None:
    resources = build(overlay)
    configs, accounts = of_kind(resources, "ConfigMap"), of_kind(resources, "ServiceAccount")
    claims = of_kind(resources, "PersistentVolumeClaim")
    for resource in resources:
        template = pod_template(resource)
        if template is None:
            continue
        pod = template["spec"]
        assert resource["kind"] == "StatefulSet" or pod["serviceAccountName"] in accounts
        for volume in pod.get("volumes", []):
            assert "persistentVolumeClaim" not in volume or volume["persistentVolumeClaim"]["claimName"] in claims
            assert "configMap" not in volume or volume["configMap"]["name"] in configs
        mounted = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", [])}
        claimed = {c["metadata"]["name"] for c in resource["spec"].get("volumeClaimTemplates", [])}
        assert mounted <= {v["name"] for v in pod.get("volumes", [])} | claimed, resource["metadata"]["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_those_that_the_docs_make(overlay: str) -> None:
    """The page on clusters has a command for each Secret and key; nothing else is asked for."""
    page = (ROOT / "docs" / "operations" / "cluster.md").read_text()
    for resource in build(overlay):
        assert resource["kind"] != "Secret", "a secret must not lie in the repository"
        for container in (pod_template(resource) or {"spec": {"containers": []}})["spec"]["containers"]:
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference:
                    assert reference["key"] in SECRETS[reference["name"]]
                    assert f"secret generic {reference['name']}" in page
                    assert f"{reference['key']}=" in page


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_setting_is_one_that_the_code_reads(overlay: str) -> None:
    known = known_settings()
    resources = build(overlay)
    given = {name for config in of_kind(resources, "ConfigMap").values() for name in config["data"]}
    for resource in resources:
        for container in (pod_template(resource) or {"spec": {"containers": []}})["spec"]["containers"]:
            given |= {variable["name"] for variable in container.get("env", [])}
    assert {name for name in given if name.startswith("TEXTMILL_")} <= known


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_deployment_has_service_and_budget(overlay: str) -> None:
    resources = build(overlay)
    deployments = of_kind(resources, "Deployment")
    assert set(of_kind(resources, "PodDisruptionBudget")) == set(deployments)
    services = of_kind(resources, "Service")
    for name, deployment in deployments.items():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert services[name]["spec"]["selector"].items() <= labels.items()
        assert services[name]["metadata"]["labels"]["textmill.io/job"].startswith("textmill-")
        assert len(deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]) == 2


def test_scaling_leads_to_deployments_and_each_has_one_scaler() -> None:
    resources = build("production")
    targets = [
        r["spec"]["scaleTargetRef"]["name"]
        for r in resources
        if r["kind"] in ("ScaledObject", "HorizontalPodAutoscaler")
    ]
    assert len(targets) == len(set(targets))
    assert set(targets) <= set(of_kind(resources, "Deployment"))
    assert {"ingest-worker", "synth-worker", "trainer-worker", "vllm", "gateway"} <= set(targets)


def test_loads_of_half_an_hour_are_allowed() -> None:
    for name in ("engine", "vllm"):
        probe = of_kind(build("production"), "Deployment")[name]["spec"]["template"]["spec"]["containers"][0][
            "startupProbe"
        ]
        assert probe["periodSeconds"] * probe["failureThreshold"] >= 1800


# -- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_is_allowed_by_default(overlay: str) -> None:
    deny = of_kind(build(overlay), "NetworkPolicy")["default-deny"]["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


PRIVATE = (
    "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "127.0.0.1", "100.64.0.1", "0.0.0.0",
    "198.18.0.1", "224.0.0.1", "255.255.255.255", "::1", "fc00::1", "fd12::1", "fe80::1", "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::", "ff02::1",
)  # fmt: skip


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_crawler_reaches_the_internet_and_nothing_private(overlay: str) -> None:
    policies = [p["spec"] for p in of_kind(build(overlay), "NetworkPolicy").values()]
    rules = [
        peer["ipBlock"]
        for policy in policies
        if _selects(policy["podSelector"], {"app.kubernetes.io/name": "ingest-worker", "textmill.io/role": "worker"})
        for rule in policy.get("egress", [])
        for peer in rule.get("to", [])
        if "ipBlock" in peer and peer["ipBlock"]["cidr"] != "192.0.2.0/24"  # the store of the production overlay
    ]
    assert [address for address in PRIVATE if _allowed(rules, address)] == []
    assert _allowed(rules, "93.184.216.34")
    assert _allowed(rules, "2606:2800:220:1::1")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_the_crawler_reaches_the_internet(overlay: str) -> None:
    for name, policy in of_kind(build(overlay), "NetworkPolicy").items():
        for rule in policy["spec"].get("egress", []):
            wide = [
                p
                for p in rule.get("to", [])
                if ipaddress.ip_network(p.get("ipBlock", {}).get("cidr", "192.0.2.0/24")).prefixlen < 16
            ]
            assert not wide or name == "allow-crawler"
            # Without an address: to the API server, which has none that is known beforehand.
            assert "to" in rule or name in {"strimzi-inside", "allow-trainer-to-api-server"}


def test_a_run_reaches_nothing() -> None:
    labels = of_kind(build("production"), "Job")["training-template"]["spec"]["template"]["metadata"]["labels"]
    selected = [
        name
        for name, policy in of_kind(build("production"), "NetworkPolicy").items()
        if _selects(policy["spec"]["podSelector"], labels)
    ]
    assert selected == ["default-deny"]


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    exact = selector.get("matchLabels", {}).items() <= labels.items()
    return exact and all(labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", []))


def _allowed(blocks: list[dict[str, Any]], address: str) -> bool:
    ip = ipaddress.ip_address(address)

    def inside(network: str) -> bool:
        return ip in ipaddress.ip_network(network)  # False for the other version

    return any(inside(b["cidr"]) and not any(inside(e) for e in b.get("except", [])) for b in blocks)


# -- rights, and what is generated -----------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rights_are_few(overlay: str) -> None:
    resources = build(overlay)
    assert not of_kind(resources, "ClusterRole")
    assert not of_kind(resources, "ClusterRoleBinding")
    rules = [rule for role in of_kind(resources, "Role").values() for rule in role["rules"]]
    assert all("*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"] for rule in rules)
    assert {resource for rule in rules for resource in rule["resources"]} <= {"jobs", "pods"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pod_security_is_restricted(overlay: str) -> None:
    labels = of_kind(build(overlay), "Namespace")["textmill"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_generated_files_are_up_to_date() -> None:
    path = ROOT / "deploy" / "prometheus" / "to_kubernetes.py"
    spec = importlib.util.spec_from_file_location("to_kubernetes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.RULES.read_text() == module.rules(), f"run: python {path.relative_to(ROOT)}"
    assert module.TOPICS.read_text() == module.topics(), f"run: python {path.relative_to(ROOT)}"


def test_a_lease_outlives_a_missed_beat() -> None:
    """Pods are paused by throttled CPUs: the settings that we deploy leave room for three missed beats."""
    for resource in build("production"):
        for container in (pod_template(resource) or {"spec": {"containers": []}})["spec"]["containers"]:
            env = {v["name"]: v.get("value", "") for v in container.get("env", [])}
            lease = next((float(v) for name, v in env.items() if name.endswith("_LEASE_TTL_S")), None)
            settings = ServiceSettings() if lease is None else ServiceSettings(lease_ttl_s=lease)
            assert pace(settings).heartbeat_s * 4 <= settings.lease_ttl_s


def test_yaml_is_read_as_it_is_meant() -> None:
    """No tab, no duplicate key: the parser of PyYAML takes the last of two silently."""
    for path in (ROOT / "deploy").rglob("*.y*ml"):
        for document in yaml.compose_all(path.read_text()):
            _no_twice(document, path.name)


def _no_twice(node: Any, where: str) -> None:
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{where}: {[k for k in keys if keys.count(k) > 1]}"
        for _, value in node.value:
            _no_twice(value, where)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _no_twice(value, where)


def test_any_overlay_can_take_tracing_along(tmp_path: Path) -> None:
    """Built as an owner would: a folder with the overlay and the component in it."""
    overlay, component = (
        os.path.relpath(K8S / path, tmp_path) for path in ("overlays/production", "components/tracing")
    )
    (tmp_path / "kustomization.yaml").write_text(f"resources: [{overlay}]\ncomponents: [{component}]\n")
    resources = build_folder(tmp_path)
    assert [fault for resource in resources for fault in (*schema_faults(resource), *violations(resource))] == []
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in of_kind(resources, "ConfigMap")["textmill"]["data"]
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in of_kind(build("production"), "ConfigMap")["textmill"]["data"]
    [rule] = of_kind(resources, "NetworkPolicy")["allow-spans"]["spec"]["egress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 4318}]
