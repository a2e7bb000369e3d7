"""Whether images packed with loss distil as well as the exact ones: the same small DM runs on a CPU from both.

    python -m benchmarks.gpu lossy FOLDER --out FILE     FOLDER holds the exact train.npz, test.npz and classes.txt

Both are tested on the same exact images. Seeds are two, so that the difference between them shows what is chance.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.gpu import images
from ddfast.distill.config import Config
from ddfast.distill.run import Run

KEYS = {
    "device": "cpu",
    "covariance_weight": 0.0,
    "width": 32,
    "batch_real": 64,
    "epochs": 300,
    "repeats": 5,
    "log_every": 50,
    "checkpoint_every": 1000,
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2023, 0.1994, 0.2010),
}
SEEDS = (0, 1)


def compare(source: Path, iterations: int) -> dict[str, dict[str, list[float]]]:
    """Accuracies in percent of the evaluation networks, by training images and seed."""
    found: dict[str, dict[str, list[float]]] = {"exact": {}, "packed": {}}
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "packed"
        images.pack(source, Path(folder) / "packed.npz")
        images.unpack(Path(folder) / "packed.npz", packed)
        exact = shutil.copytree(packed, Path(folder) / "exact")
        shutil.copy(source / "train.npz", exact)
        for seed in SEEDS:
            for name, data in (("exact", exact), ("packed", packed)):
                config = Config(**KEYS, data=str(data), seed=seed, iterations=iterations)  # type: ignore[arg-type]
                run = Run(config, Path(folder) / f"{name}-{seed}", False, Console(quiet=True), baselines=False)
                found[name][str(seed)] = run()["distilled"]["runs"]
                print(name, seed, found[name][str(seed)], flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    found = compare(options.source, options.iterations)
    for name, runs in found.items():
        every = [value for values in runs.values() for value in values]
        print(f"{name}: {sum(every) / len(every):.2f} % ({', '.join(f'{value:.2f}' for value in every)})")
    if options.out:
        options.out.write_text(json.dumps({"keys": KEYS, "iterations": options.iterations, "runs": found}) + "\n")


if __name__ == "__main__":
    main()
