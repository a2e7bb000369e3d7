"""Whether images packed with loss distil as well as the exact ones: the same small DM runs on a CPU from both.

    python -m benchmarks.gpu lossy FOLDER --out FILE     FOLDER holds the exact train.npz, test.npz and classes.txt

Both are tested on the same exact images. Seeds are two, so that the difference between them shows what is chance.
"""

import argparse
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from benchmarks.gpu import images
from ddfast.distill.config import Config
from ddfast.distill.run import Run

TRIED = {  # formats that a mosaic can be written in
    "WebP, lossless": {"format": "webp", "lossless": True, "quality": 100, "method": 4},
    "WebP, quality 95": {"format": "webp", "quality": 95, "method": 4},
    "WebP, quality 100": {"format": "webp", "quality": 100, "method": 4},
    f"JPEG, quality {images.QUALITY}": images.FORMATS["jpeg"],
}
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


def formats(source: Path, count: int = 1000) -> Iterator[str]:
    """A line for each format: bytes an image, and the root-mean-square error in levels of 255."""
    with np.load(source / "train.npz") as file:
        exact = file["images"][:count]
    mosaics = list(images.mosaics(exact))
    for name, options in TRIED.items():
        data = []
        for mosaic in mosaics:
            with io.BytesIO() as file:
                Image.fromarray(mosaic).save(file, **options)
                data.append(file.getvalue())
        back = np.concatenate([images.decode(one) for one in data])
        error = np.square(back.astype(float) - np.concatenate(mosaics)).mean() ** 0.5
        yield f"{name}: {sum(map(len, data)) / count:.0f} bytes an image, error {error:.2f} of 255"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    print("\n".join(formats(options.source)))
    found = compare(options.source, options.iterations)
    for name, runs in found.items():
        every = [value for values in runs.values() for value in values]
        print(f"{name}: {sum(every) / len(every):.2f} % ({', '.join(f'{value:.2f}' for value in every)})")
    if options.out:
        options.out.write_text(json.dumps({"keys": KEYS, "iterations": options.iterations, "runs": found}) + "\n")


if __name__ == "__main__":
    main()
