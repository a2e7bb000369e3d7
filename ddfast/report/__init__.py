"""What a run leaves for the eye: a picture of the images, a picture of its course, and tables for the terminal."""

from ddfast.report.curve import save_curve
from ddfast.report.grid import draw_grid, save_grid
from ddfast.report.sweep import options_line, ranked, save_sweep, sweep_table
from ddfast.report.table import class_table, evaluation_table, networks_table, pool_table
from ddfast.report.tensorboard import Board

__all__ = [
    "Board",
    "class_table",
    "draw_grid",
    "evaluation_table",
    "networks_table",
    "options_line",
    "pool_table",
    "ranked",
    "save_curve",
    "save_grid",
    "save_sweep",
    "sweep_table",
]
