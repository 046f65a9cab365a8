"""How many requests in flight one replica should carry, and the KEDA and HPA objects that keep it there.

Requests in flight (running and waiting) are what to scale on: they grow the moment load does, while CPU and GPU use
stay at their top from the knee on, and queue length is 0 until it is too late. By Little's law they also carry a limit
that was found as a rate over to requests in flight.
"""

from collections.abc import Sequence

from textmill.contracts.capacity import CapacityFinding
from textmill.contracts.loadreport import Knee, Level, Scaling

HEADROOM = 0.8
"""Scale at four fifths of what a replica holds: a new one takes a minute to start, and load goes on growing."""


def scaling_for(levels: Sequence[Level], capacity: CapacityFinding | None, knee: Knee | None) -> Scaling | None:
    """From the confirmed capacity, else from the knee. None when neither was found."""
    found = _from_capacity(levels, capacity) or _from_knee(levels, knee)
    if found is None:
        return None
    measured, source = found
    threshold = max(1.0, float(f"{measured * HEADROOM:.3g}"))
    notes = (
        "For one replica that takes its load from a balancer which spreads it evenly.",
        "Names of the deployment, its namespace and Prometheus' address are yours to fill in.",
    )
    return Scaling(
        in_flight=threshold,
        measured_in_flight=measured,
        headroom=HEADROOM,
        source=source,
        keda=_KEDA.format(threshold=f"{threshold:g}", activation="1"),
        hpa=_HPA.format(threshold=_quantity(threshold)),
        notes=notes,
    )


def _from_capacity(levels: Sequence[Level], capacity: CapacityFinding | None) -> tuple[float, str] | None:
    if capacity is None or capacity.low is None:
        return None
    held = [level for level in levels if level.valid and level.load == capacity.low]
    if not held:
        return None
    word = "requests in flight" if capacity.kind == "concurrency" else "requests per second"
    return _in_flight(held, capacity.low), f"the confirmed low end of the capacity, {capacity.low:g} {word}"


def _from_knee(levels: Sequence[Level], knee: Knee | None) -> tuple[float, str] | None:
    measured = [level for level in levels if level.valid]
    if knee is None or not measured:
        return None
    nearest = min(measured, key=lambda level: abs(level.load - knee.load))
    per_load = _in_flight([nearest], nearest.load) / nearest.load
    return knee.load * per_load, f"the knee of throughput, at load {knee.load:.3g}"


def _in_flight(levels: Sequence[Level], load: float) -> float:
    """A closed loop's load is itself; of a rate the mean that was in flight under it."""
    if levels[0].kind == "concurrency":
        return load
    return sum(level.in_flight for level in levels) / len(levels)


def _quantity(value: float) -> str:
    """In Kubernetes' notation, which has no decimals but thousandths: 12.5 is 12500m."""
    return f"{value:g}" if value == int(value) else f"{round(value * 1000)}m"


_KEDA = """\
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: textmill-engine
spec:
  scaleTargetRef:
    name: textmill-engine
  minReplicaCount: 1
  maxReplicaCount: 8
  cooldownPeriod: 300
  triggers:
    - type: prometheus
      metricType: AverageValue
      metadata:
        serverAddress: http://prometheus.monitoring:9090
        query: sum(vllm:num_requests_running + vllm:num_requests_waiting)
        threshold: "{threshold}"
        activationThreshold: "{activation}"
"""
_HPA = """\
# Needs the Prometheus adapter with a rule that serves
# sum by (namespace) (vllm:num_requests_running + vllm:num_requests_waiting) as vllm_requests_in_flight.
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: textmill-engine
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: textmill-engine
  minReplicas: 1
  maxReplicas: 8
  behavior:
    scaleDown:
      stabilizationWindowSeconds: 300
  metrics:
    - type: External
      external:
        metric:
          name: vllm_requests_in_flight
        target:
          type: AverageValue
          averageValue: "{threshold}"
"""
