"""Plots of the data for the Dagster UI, as PNG bytes; matplotlib is imported only to draw one (0.5 s)."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from itertools import dropwhile
from typing import Any

from iccm_assets.registry.loss_curve import LossPoint
from iccm_assets.reporting.daily_funnel import DailyFunnel

# A run of more days plots only its newest days; the numbers cover all.
MAX_PLOTS = 31
# From pool rows to rejections; a reason has the same color on every day.
COLORS = {
    "in_the_pool": "#2a9d6f",
    "duplicate": "#8ab6a3",
    "held_out": "#5b8fc9",
    "low_test_pass_rate": "#e07a3f",
    "high_implementation_variance": "#f0b07a",
    "negative_feedback": "#b5485d",
    "inconclusive": "#9a79b8",
    "not_scored": "#c3b1d6",
}
OTHER_COLOR = "#bdbdbd"


def plot_histogram(
    rates: Sequence[float], threshold: float, unit: str = "texts", quantity: str = "test pass rate"
) -> bytes:
    """Plot the distribution of a day's pass rates, or of another quantity, and its threshold."""
    figure, axes = _axes(6.4, 2.6, layout=None)  # an automatic layout doubles the time
    figure.subplots_adjust(left=0.09, right=0.98, top=0.88, bottom=0.19)
    if rates:
        _, _, bars = axes.hist(rates, bins=20, range=(0, 1), color=COLORS["in_the_pool"])
        for bar in bars:
            if bar.get_x() + bar.get_width() <= threshold + 1e-9:
                bar.set_facecolor(COLORS["low_test_pass_rate"])
    else:
        axes.text(0.5, 0.5, "nothing was scored", ha="center", va="center", transform=axes.transAxes)
    axes.axvline(threshold, color="0.25", linewidth=1, linestyle="--")
    axes.annotate(
        f"kept above {threshold:g}", (threshold, 1), xycoords=("data", "axes fraction"),
        xytext=(-4, -4), textcoords="offset points", ha="right", va="top", fontsize=8, color="0.25",
    )  # fmt: skip
    kept = sum(rate > threshold for rate in rates)
    axes.set_title(f"{kept} of {len(rates)} {unit} above the threshold", loc="left", fontsize=9)
    axes.set(xlabel=quantity, ylabel=unit, xlim=(0, 1))
    _integer_ticks(axes.yaxis)
    return render_png(figure)


def plot_daily_funnel(funnels: Sequence[DailyFunnel]) -> bytes:
    """Plot a stacked bar per day: pool rows at the bottom, rejections by reason above.

    Starts with the first day that has conversations.
    """
    funnels = list(dropwhile(lambda funnel: not funnel.captured, funnels))
    figure, axes = _axes(min(10.0, 3.4 + 0.3 * len(funnels)), 3.0)
    counts = [{"in_the_pool": funnel.pool, **funnel.reasons} for funnel in funnels]
    bottom = [0] * len(funnels)
    for name in ["in_the_pool", *_reasons(funnels)]:
        heights = [count.get(name, 0) for count in counts]
        label, color = name.replace("_", " "), COLORS.get(name, OTHER_COLOR)
        axes.bar(range(len(funnels)), heights, bottom=bottom, color=color, label=label)
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
    return render_png(figure)


def plot_loss_curve(history: Sequence[LossPoint]) -> bytes:
    """Plot training loss per step and validation loss per epoch; an empty history gives empty axes."""
    figure, axes = _axes(7, 3.2)
    for name, label, style in (
        ("loss", "training, per step", {"linewidth": 1, "alpha": 0.7}),
        ("validation_loss", "validation, per epoch", {"linewidth": 2, "marker": "o"}),
    ):
        points = [(point.step, loss) for point in history if (loss := getattr(point, name)) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    if history:
        axes.legend(frameon=False)
    axes.set(xlabel="optimizer step", ylabel="loss per target token")
    axes.set_ylim(bottom=0)
    return render_png(figure)


def _reasons(funnels: Sequence[DailyFunnel]) -> list[str]:
    """Return reasons with a color in the order of the colors, then the others by frequency."""
    counts: Counter[str] = Counter()
    for funnel in funnels:
        counts.update(funnel.reasons)
    known = [name for name in COLORS if name in counts]
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


def render_png(figure: Any) -> bytes:
    """Render a matplotlib figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
