"""Plots of the data for the Dagster UI, as PNG bytes; matplotlib is imported only to draw one (0.5 s)."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from itertools import dropwhile
from typing import Any

from iccm_assets.registry.loss_curve import LossPoint
from iccm_assets.reporting.daily_funnel import DailyFunnel

# A run of more days plots only its newest days; the numbers cover all.
MAX_PLOTS = 31


# From pool rows to rejections; a reason has the same colour on every day.
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


def markdown_image(png: bytes, alt: str) -> str:
    """Return an image as Markdown with the bytes embedded, for ``MetadataValue.md``."""
    return f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode('ascii')})"


def plot_histogram(rates: Sequence[float], threshold: float) -> bytes:
    """Plot the distribution of a day's pass rates and the threshold of the filter."""
    figure, axes = _axes(6.4, 2.6, layout=None)  # an automatic layout doubles the time
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
    _integer_ticks(axes.yaxis)
    return _png(figure)


def plot_daily_funnel(funnels: Sequence[DailyFunnel]) -> bytes:
    """Plot a stacked bar per day: pool rows at the bottom, rejections by reason above.

    Starts with the first day that has conversations.
    """
    funnels = list(dropwhile(lambda story: not story.captured, funnels))
    figure, axes = _axes(min(10.0, 3.4 + 0.3 * len(funnels)), 3.0)
    counts = [{"in the pool": story.pool, **story.reasons} for story in funnels]
    bottom = [0] * len(funnels)
    for name in ["in the pool", *_reasons(funnels)]:
        heights = [count.get(name, 0) for count in counts]
        label, colour = name.replace("_", " "), COLOURS.get(name, OTHER)
        axes.bar(range(len(funnels)), heights, bottom=bottom, color=colour, label=label)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    ticks = range(0, len(funnels), -(-len(funnels) // 10) or 1)
    axes.set_xticks(list(ticks), [f"{funnels[tick].day:%d %b}" for tick in ticks], fontsize=8)
    axes.set_ylabel("conversations")
    axes.set_title("conversations by day and outcome", loc="left", fontsize=9)
    _integer_ticks(axes.yaxis)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8
    )
    return _png(figure)


def _reasons(stories: Sequence[DailyFunnel]) -> list[str]:
    """Return reasons with a colour in the order of the colours, then the others by frequency."""
    counts: Counter[str] = Counter()
    for story in stories:
        counts.update(story.reasons)
    known = [name for name in COLOURS if name in counts]
    return known + sorted(counts.keys() - set(known), key=lambda name: (-counts[name], name))


def _axes(width: float, height: float, layout: Any = "constrained") -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout=layout)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def _integer_ticks(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=5))


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def plot_loss_curve(history: Sequence[LossPoint]) -> bytes:
    """Plot training loss per step and validation loss per epoch; an empty history gives empty axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    steps = [(point.step, point.loss) for point in history if point.loss is not None]
    epochs = [(point.step, point.validation_loss) for point in history if point.validation_loss is not None]
    if steps:
        axes.plot(*zip(*steps, strict=True), linewidth=1, alpha=0.7, label="training, per step")
    if epochs:
        axes.plot(*zip(*epochs, strict=True), marker="o", linewidth=2, label="validation, per epoch")
    if history:
        axes.legend(frameon=False)
    axes.set(xlabel="optimizer step", ylabel="loss per target token")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def loss_curve_markdown(history: Sequence[LossPoint]) -> str:
    """Return the plot as Markdown with the image embedded, for ``MetadataValue.md``."""
    return f"![loss](data:image/png;base64,{base64.b64encode(plot_loss_curve(history)).decode('ascii')})"
