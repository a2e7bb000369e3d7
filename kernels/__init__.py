"""Triton kernels, installed as `ddfast.kernels`: one file for each operator; none imports the rest of the package."""
