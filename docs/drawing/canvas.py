"""A picture measured in pixels from its top left corner, saved as SVG that is the same each time it is drawn."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

matplotlib.use("svg")
INK, FAINT, GROUND, PAPER, RED, GREEN, ORANGE = (
    "#24292e", "#6b7280", "#f3f4f6", "#ffffff", "#c4162a", "#19730e", "#f79520",
)  # fmt: skip
LINES = ("#1f77b4", "#e07b00", "#2ca02c", "#9467bd", "#d62728", "#17a2b8", "#8c564b", "#c2409a", "#5f6b76", "#8a8a00")
STYLE: dict[str, Any] = {
    "font.size": 10,
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "svg.fonttype": "none",  # text stays text: smaller, and a reader can search for it
    "svg.hashsalt": "textmill",
}
_DPI = 72  # so that a point is a pixel


class Canvas:
    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=GROUND)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes of this size, whose top left corner is at ``(x, y)``, with faint lines and no frame."""
        made = self.figure.add_axes(
            (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        )
        made.set_facecolor("none")
        made.spines[:].set_visible(False)
        made.tick_params(length=0, labelsize=9, labelcolor=FAINT, pad=6)
        made.tick_params(axis="x", pad=9)
        made.grid(color="#e5e7eb", linewidth=0.8)
        made.set_axisbelow(True)
        return made

    def text(self, x: float, y: float, words: str, size: float = 10, colour: str = INK, **style: Any) -> None:
        """``y`` is the middle of the line."""
        style = {"ha": "left", "va": "center_baseline", **style}
        # A dollar would begin a formula.
        self.figure.text(
            x / self.width, 1 - y / self.height, words.replace("$", r"\$"), size=size, color=colour, **style
        )

    def box(self, x: float, y: float, width: float, height: float, colour: str, edge: str = "none") -> None:
        corner = (x / self.width, 1 - (y + height) / self.height)
        size = (width / self.width, height / self.height)
        self.figure.add_artist(Rectangle(corner, *size, facecolor=colour, edgecolor=edge, linewidth=0.8, zorder=-1))

    def line(self, x: float, y: float, width: float, colour: str, style: str = "-", thickness: float = 1.6) -> None:
        """To the right from ``(x, y)``."""
        across, down = (x / self.width, (x + width) / self.width), 1 - y / self.height
        self.figure.add_artist(Line2D(across, (down, down), color=colour, linestyle=style, linewidth=thickness))

    def save(self, path: Path) -> None:
        """As SVG, without a date."""
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(path, format="svg", metadata={"Date": None, "Creator": "docs/pictures.py"})
