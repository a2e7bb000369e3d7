"""Triton kernels, installed as `ddfast.kernels`: one file for each idea; none imports the rest of the package."""
