"""The rollouts' metrics. Labels are model names, ways and outcomes, never ids."""

from prometheus_client import Counter

ROLLOUTS = Counter(
    "textmill_rollouts_total", "Versions that came to answer, by how: without interruption, save restarted", ["how"]
)
TRIALS_ENDED = Counter(
    "textmill_trials_ended_total", "Canaries and shadows that ended, by how", ["model", "role", "outcome"]
)
CUT_OFF = Counter(
    "textmill_drain_cut_off_total", "Answers under way when a replaced version's time to finish was over", ["model"]
)
