"""The keys of a run with a value for each that differs from its default."""

import dataclasses
from typing import Any

from ddfast.distill.config import Config

KEYS = {key.name: key for key in dataclasses.fields(Config)}

# A value for every key that is neither its default nor easy to write down.
OTHER: dict[str, Any] = {
    "recipe": "a/b",
    "data": '/data/with "quotes", \\back\\slashes,\ttabs\nand ünïcode \U0001f600',
    "image_size": 48,
    "mean": (0.1, 1 / 3, 1e-300),
    "std": (1, 2.5, 5e20),
    "holdout": 0.1,
    "ipc": 7,
    "init": "noise",
    "iterations": 2**70,
    "seed": 2**64 - 1,
    "device": "cuda:1",
    "batch_real": 1,
    "image_lr": 1e-05,
    "image_momentum": 1,
    "augmentation": "none",
    "network": "resnet18",
    "width": 3,
    "depth": 4,
    "norm": "group",
    "mean_weight": -0.0625,
    "covariance_weight": 1e22,
    "local": "rows",
    "centralization_weight": 0.05,
    "alpha": 0.02,
    "beta": -1.5,
    "cmi_weight": 8000,
    "pool": "~/it's a 'pool'",
    "pool_count": 1000,
    "pool_epochs": 41,
    "pool_network": "convnet",
    "pool_width": 5,
    "pool_depth": 6,
    "precision": "bf16",
    "graph": False,
    "memory_budget": "1.5GiB",
    "epochs": 1,
    "repeats": 20,
    "whole_epochs": 9,
    "eval_every": 0,
    "log_every": 10,
    "checkpoint_every": 11,
    "tensorboard": True,
}
NEEDS = {"beta": {"alpha": 1.0}, "centralization_weight": {"pool": "p"}, "cmi_weight": {"pool": "p"}}


def alone(name: str) -> Config:
    """The configuration whose `name` has its other value, with what that needs."""
    return Config().replace(**NEEDS.get(name, {}), **{name: OTHER[name]})
