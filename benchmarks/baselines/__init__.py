"""What every backend is compared with; `compile` is torch.compile of `eager`."""

BASELINES = ("loop", "eager", "compile")
