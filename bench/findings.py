"""What a benchmark finds: its readings, and its goals with the figure that each came to.

Prints each as it comes, and writes all of them with the command and the machine they were measured with.
"""

import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Findings:
    """What was measured, and which goals hold: name, figure, goal, whether it holds."""

    readings: dict[str, Any] = field(default_factory=dict)
    goals: list[tuple[str, str, str, bool]] = field(default_factory=list)

    def goal(self, name: str, figure: str, goal: str, holds: bool) -> None:
        self.goals.append((name, figure, goal, holds))
        print(f"{name:<58} {figure:>14}   goal {goal:<16} {'holds' if holds else 'MISSED'}", flush=True)

    def note(self, name: str, **reading: Any) -> None:
        self.readings[name] = reading
        print(f"{name}: {', '.join(f'{key} {value}' for key, value in reading.items())}", flush=True)

    @property
    def all_hold(self) -> bool:
        return all(holds for *_, holds in self.goals)

    def write(self, out: Path, command: str, **more: Any) -> None:
        """Readings and goals as JSON, ``more`` beside them; says on standard output how many goals hold."""
        document = {
            "command": command,
            "machine": {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
            **more,
            "readings": self.readings,
            "goals": [dict(zip(("name", "figure", "goal", "holds"), goal, strict=True)) for goal in self.goals],
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=2) + "\n")
        print(f"{sum(holds for *_, holds in self.goals)} of {len(self.goals)} goals hold")
