"""What the pictures that Matplotlib draws have in common."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from ddfast.errors import UserError
from ddfast.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart for colour-blind readers.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
INK, FAINT_INK, GRID_INK = "#202020", "#606060", "#E6E6E6"


def new_figure(path: Path, size: tuple[float, float], title: str) -> "Figure":
    """A figure of so many inches for the file `path`. Raises `UserError` without Matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"{path.name} is drawn by Matplotlib, which is missing: pip install 'ddfast[plot]'") from error
    figure = Figure(figsize=size, dpi=120)
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.12)
    figure.suptitle(title, color=INK, fontsize=14, parse_math=False)
    return figure


def save_figure(figure: "Figure", path: Path) -> None:
    """Writes a PNG in one step."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def label_axes(axes: "Axes", x: str, y: str) -> None:
    axes.set_xlabel(x, color=INK, fontsize=11)
    axes.set_ylabel(y, color=INK, fontsize=11)
    axes.tick_params(colors=FAINT_INK, labelsize=10)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT_INK)


def put_legend(axes: "Axes") -> None:
    """Above the axes, where it hides nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=10, labelcolor=INK)
