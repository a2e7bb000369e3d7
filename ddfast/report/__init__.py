"""What a run leaves for the eye: a picture of the images, a picture of its course, and tables for the terminal."""

from ddfast.report.curve import save_curve
from ddfast.report.grid import save_grid
from ddfast.report.table import class_table, evaluation_table, networks_table

__all__ = ["class_table", "evaluation_table", "networks_table", "save_curve", "save_grid"]
