"""Triton kernels, installed as `ddfast.kernels`: one file for each operator, and none imports the rest of the package."""
