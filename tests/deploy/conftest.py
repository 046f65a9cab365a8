"""Checks of what is deployed, without a cluster: manifests, policies, rules, dashboards."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
