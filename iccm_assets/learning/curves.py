"""Plot the loss curve for the Dagster UI (L7)."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from iccm_assets.learning.job import LossPoint


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
