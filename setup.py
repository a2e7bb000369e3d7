"""What pyproject.toml cannot say: the Triton kernels of `kernels/` are installed as ddfast.kernels."""

from setuptools import setup

PACKAGES = ["data", "distill", "evaluate", "kernels", "networks", "operators", "recipes", "report"]

setup(
    packages=["ddfast", *(f"ddfast.{name}" for name in PACKAGES)],
    package_dir={"ddfast": "ddfast", "ddfast.kernels": "kernels"},
)
