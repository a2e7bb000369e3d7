"""How the weights of the digits recipe were chosen: on a quarter of the training images, never on the test images.

    python -m benchmarks.digits_weights --seeds 3 --out benchmarks/results/<machine>/<date>-<commit>/digits-weights.json

For every setting and seed it distils the digits recipe from the other three quarters, trains the recipe's evaluation
networks on the result, and prints their accuracy on the held-out quarter: mean over seeds, and the standard error of
that mean. One setting after the other, from DM alone; what is there already in --out is not run again.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.environment import environment
from ddfast.distill.folder import RunFolder
from ddfast.distill.pretrain import pretrain
from ddfast.distill.run import Run
from ddfast.distill.setup import labels_of, load_data, pool_config, protocol_of
from ddfast.evaluate.protocol import evaluate_images
from ddfast.files import write_atomically
from ddfast.recipes import from_recipe

HOLDOUT = 0.25
NAMES = ("covariance_weight", "centralization_weight", "cmi_weight")
SETTINGS = (
    (0.0, 0.0, 0.0),
    *((weight, 0.0, 0.0) for weight in (0.001, 0.01, 0.1)),
    *((0.0, weight, 0.0) for weight in (1e-6, 1e-5, 1e-4, 1e-3)),
    *((0.0, 0.0, weight) for weight in (0.1, 1.0, 10.0, 100.0)),
    (0.01, 1e-5, 0.1),
    (0.01, 1e-5, 1.0),
    (0.01, 1e-4, 1.0),
    (0.01, 1e-4, 10.0),
    (0.01, 0.05, 8000.0),  # the published weights
)


def measure(setting: tuple[float, ...], seed: int, folder: Path) -> float:
    """Accuracy in percent on the held-out images."""
    base = from_recipe("digits").replace(holdout=HOLDOUT, seed=seed, eval_every=0, log_every=100)
    dataset = load_data(base, torch.device("cpu"))
    pool = folder / f"pool-{seed}"
    if not pool.exists():
        pretrain(pool, dataset, base.pool_count, pool_config(base), lambda: None, lambda number, accuracy: None)
    config = base.replace(pool=str(pool), **dict(zip(NAMES, setting, strict=True)))
    path = Path(tempfile.mkdtemp(dir=folder))
    Run(config, path, False, Console(quiet=True))()
    state = RunFolder(path).load_state(torch.device("cpu"))
    return evaluate_images(state.images, labels_of(config, dataset), dataset, protocol_of(config), lambda: None)["mean"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
    results |= environment()
    done = {(tuple(row["weights"]), row["seed"]) for row in results["rows"]}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for setting in SETTINGS:
            for seed in range(arguments.seeds):
                if (setting, seed) not in done:
                    accuracy = measure(setting, seed, Path(folder))
                    results["rows"].append({"weights": setting, "seed": seed, "accuracy": accuracy})
                    write_atomically(arguments.out, json.dumps(results, indent=1).encode())
            values = [row["accuracy"] for row in results["rows"] if tuple(row["weights"]) == setting]
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
            weights = "  ".join(f"{name} {weight:g}" for name, weight in zip(NAMES, setting, strict=True))
            print(f"{statistics.mean(values):6.2f} ± {error:4.2f} %  {weights}", flush=True)


if __name__ == "__main__":
    main()
