"""What was carried, made ready where the commands run: extensions, Triton's cache and images.

The folder comes from `make gpu-bundle`. Where the checkout lies on the machine is not known beforehand, so whatever
holds paths is rewritten here. Nothing of ddfast is imported before it is in place.
"""

import json
import os
import shutil
import sysconfig
import tarfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.case import Given, NotHere, Record, Wrong

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "gpu-bundle"
ABOUT, EXTENSIONS, CACHE, IMAGES, AGAIN = (
    "bundle.json",
    "extensions.tar.xz",
    "triton.tar.xz",
    "cifar10.npz",
    "again.json",
)


def arrive(bundle: Path, work: Path) -> dict[str, Any]:
    """Puts everything in place, and sets the variables of the environment that the workers inherit."""
    link_kernels(ROOT)
    found: dict[str, Any] = {"bundle": (bundle / ABOUT).exists()}
    if not found["bundle"]:
        return found
    about = json.loads((bundle / ABOUT).read_text())
    os.environ.setdefault("COMMIT", about["commit"])
    found["extensions"] = place_extensions(bundle / EXTENSIONS, ROOT)
    if (bundle / CACHE).exists():
        os.environ["TRITON_CACHE_DIR"] = str(unpack_cache(bundle / CACHE, work / "triton"))
        found["cache"] = about.get("cache")
    if (bundle / IMAGES).exists():
        from benchmarks.gpu import images  # only here: Pillow may be missing where there are none

        images.unpack(bundle / IMAGES, work / "data" / "cifar10")
        os.environ["DDFAST_DATA"] = str(work / "data")
        found["images"] = about.get("images")
    (work / "arrival.json").write_text(json.dumps(found))
    return found


def link_kernels(root: Path) -> None:
    """A checkout that is not installed finds its kernels by a link."""
    link = root / "ddfast" / "kernels"
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(Path("..") / "kernels")


def place_extensions(packed: Path, root: Path) -> list[str]:
    """Unpacks what this Python can load; another Python's would only be in the way."""
    if not packed.exists():
        return []
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    with tarfile.open(packed) as archive:
        found = [name for name in archive.getnames() if name.endswith(suffix)]
        for name in found:
            archive.extract(name, root / "ddfast", filter="data")
    return found


def unpack_cache(packed: Path, folder: Path) -> Path:
    """Triton's cache below `folder`, with the paths that its groups hold rewritten to where they are now."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    rewrite_groups(folder)
    return folder


def rewrite_groups(folder: Path) -> int:
    """A group lists all files of a compiled kernel by absolute paths; how many of them are here."""
    count = 0
    for path in folder.rglob("__grp__*"):
        group = json.loads(path.read_text())
        here = {name: path.parent / Path(old).name for name, old in group["child_paths"].items()}
        group["child_paths"] = {name: str(new) for name, new in here.items() if new.exists()}
        path.write_text(json.dumps(group))
        count += len(group["child_paths"])
    return count


def report(work: Path) -> Record:
    """Whether what was carried is used here: extensions that load, and kernels that need no compiler."""
    file = work / "arrival.json"
    if not file.exists():
        raise NotHere("nothing was carried: `make gpu-bundle` prepares it")
    from ddfast.operators import native
    from ddfast.operators.backends import absent, implemented

    found = {"arrived": json.loads(file.read_text()), "absent": dict(absent)}
    found["native"] = native.module.build_info() if native.module else None
    found["operators"] = {backend: sorted(operators) for backend, operators in implemented.items()}
    if native.module is None or (found["arrived"]["extensions"] and "cuda" in absent and _has_cuda()):
        raise Wrong(f"the extensions that were carried do not load: {absent}", **found)
    return found


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def data_of(given: Given) -> str:
    """The key `data` of a run on real images; in a rehearsal a folder of a few random ones."""
    if given.toy:
        return str(_random_images(given.work / "toy-data"))
    if not (Path(os.environ.get("DDFAST_DATA", "none")) / "cifar10" / "train.npz").exists():
        raise NotHere("there are no images: `make gpu-bundle` packs them")
    return "cifar10"


def _random_images(folder: Path) -> Path:
    if (folder / "classes.txt").exists():
        return folder
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for split, count in (("train", 200), ("test", 20)):
        labels = np.arange(count) % 10
        images = draw.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        np.savez(folder / f"{split}.npz", images=images, labels=labels)
    (folder / "classes.txt").write_text("\n".join(f"class {k}" for k in range(10)))
    return folder


def failed_before(bundle: Path) -> list[str]:
    """The cases that failed in the command before, "STEP: CASE" each, as `python -m benchmarks.gpu read` left them."""
    file = bundle / AGAIN
    return list(json.loads(file.read_text())) if file.exists() else []
