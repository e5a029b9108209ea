"""Pictures of the data for the Dagster UI: PNG bytes; matplotlib is imported where one is drawn (0.5 s)."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import dropwhile
from typing import Any

from iccm_assets.curation.story import DayStory

# A run of more days than these draws pictures of its newest days alone: numbers are told for all.
MOST_PICTURED = 31
# From what stays to what is lost; a reason keeps its colour from day to day.
COLOURS = {
    "in the pool": "#2a9d6f",
    "duplicate": "#8ab6a3",
    "held_out": "#5b8fc9",
    "low_test_pass_rate": "#e07a3f",
    "high_implementation_variance": "#f0b07a",
    "negative_feedback": "#b5485d",
    "inconclusive": "#9a79b8",
    "not_scored": "#c3b1d6",
}
OTHER = "#bdbdbd"


def markdown(png: bytes, alt: str) -> str:
    """A picture as Markdown with its bytes inside, for ``MetadataValue.md``."""
    return f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode('ascii')})"


def histogram(rates: Sequence[float], threshold: float) -> bytes:
    """How the pass rates of a day are spread, and where the filter cuts; never empty axes without words."""
    figure, axes = _axes(6.4, 2.6, layout=None)  # an automatic layout doubles what a picture costs
    figure.subplots_adjust(left=0.09, right=0.98, top=0.88, bottom=0.19)
    if rates:
        _, _, bars = axes.hist(rates, bins=20, range=(0, 1), color=COLOURS["in the pool"])
        for bar in bars:
            if bar.get_x() + bar.get_width() <= threshold + 1e-9:
                bar.set_facecolor(COLOURS["low_test_pass_rate"])
    else:
        axes.text(0.5, 0.5, "nothing was scored", ha="center", va="center", transform=axes.transAxes)
    axes.axvline(threshold, color="0.25", linewidth=1, linestyle="--")
    axes.annotate(
        f"kept above {threshold:g}", (threshold, 1), xycoords=("data", "axes fraction"),
        xytext=(-4, -4), textcoords="offset points", ha="right", va="top", fontsize=8, color="0.25",
    )  # fmt: skip
    kept = sum(rate > threshold for rate in rates)
    axes.set_title(f"{kept} of {len(rates)} texts above the threshold", loc="left", fontsize=9)
    axes.set(xlabel="test pass rate", ylabel="texts", xlim=(0, 1))
    _whole_numbers(axes.yaxis)
    return _png(figure)


def days_of_data(stories: Sequence[DayStory]) -> bytes:
    """A stacked bar a day: what reached the pool at the bottom, what was lost above it, by reason.

    Begins with the first day that has any conversations.
    """
    stories = list(dropwhile(lambda one: not one.captured, stories))
    figure, axes = _axes(min(10.0, 3.4 + 0.3 * len(stories)), 3.0)
    names = ["in the pool", *_reasons(stories)]
    floor = [0] * len(stories)
    for name in names:
        heights = [one.pool if name == "in the pool" else one.reasons.get(name, 0) for one in stories]
        axes.bar(
            range(len(stories)), heights, bottom=floor, color=COLOURS.get(name, OTHER), label=_words(name)
        )
        floor = [low + high for low, high in zip(floor, heights, strict=True)]
    step = -(-len(stories) // 10) or 1
    shown = range(0, len(stories), step)
    axes.set_xticks(list(shown), [f"{stories[n].day:%d %b}" for n in shown], fontsize=8)
    axes.set_ylabel("conversations")
    axes.set_title("where each day's conversations went", loc="left", fontsize=9)
    _whole_numbers(axes.yaxis)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8
    )
    return _png(figure)


def _reasons(stories: Sequence[DayStory]) -> list[str]:
    """Known ones in their order, then the others by how many there are."""
    counts: dict[str, int] = {}
    for story in stories:
        for name, count in story.reasons.items():
            counts[name] = counts.get(name, 0) + count
    known = [name for name in COLOURS if name in counts]
    return known + sorted(counts.keys() - set(known), key=lambda name: (-counts[name], name))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _axes(width: float, height: float, layout: Any = "constrained") -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout=layout)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=5))


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
