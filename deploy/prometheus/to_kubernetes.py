"""Writes what Kubernetes needs in another form than we keep it in: the rules as a PrometheusRule, and Kafka's topics.

    python deploy/prometheus/to_kubernetes.py

A test holds the written files to their sources.
"""

from pathlib import Path

import yaml

from textmill.bus import dead_topic, jobs_topic
from textmill.contracts.jobs import JOB_KINDS

HERE = Path(__file__).parent
COMPONENTS = HERE.parent / "k8s" / "components"
RULES = COMPONENTS / "monitoring" / "rules.yaml"
TOPICS = COMPONENTS / "kafka" / "topics.yaml"
_JOB_PARTITIONS = 24
"""As many workers of a kind hear at once; more of them find jobs in the store."""
_DAY_MS = 86_400_000


class _Dumper(yaml.SafeDumper):
    """Writes strings of several lines as blocks."""


def _string(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _string)


def rules() -> str:
    groups = [
        group for path in sorted((HERE / "rules").glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]
    ]
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "textmill"},
        "spec": {"groups": groups},
    }
    return _head("deploy/prometheus/rules") + _dump(resource)


def topics() -> str:
    parts = []
    for kind in JOB_KINDS:
        parts.append(_topic(jobs_topic(kind), _JOB_PARTITIONS, 7))
        parts.append(_topic(dead_topic(kind), 3, 30))
    return _head("the kinds of jobs") + "---\n".join(_dump(part) for part in parts)


def _topic(name: str, partitions: int, days: int) -> dict[str, object]:
    return {
        "apiVersion": "kafka.strimzi.io/v1",
        "kind": "KafkaTopic",
        "metadata": {"name": name, "labels": {"strimzi.io/cluster": "textmill"}},
        "spec": {
            "partitions": partitions,
            "replicas": 3,
            "config": {"retention.ms": days * _DAY_MS, "min.insync.replicas": 2},
        },
    }


def _head(source: str) -> str:
    return f"# Written by deploy/prometheus/to_kubernetes.py from {source}; change those.\n"


def _dump(value: object) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    RULES.write_text(rules())
    TOPICS.write_text(topics())
