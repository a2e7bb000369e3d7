"""What a run is made of: one flat set of keys, the same in recipes, on the command line and in a run's config.toml."""

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddfast.augment import parse_strategy
from ddfast.distill.precision import PRECISIONS
from ddfast.errors import UserError

_ITS_OWN = {  # keys that say how something is, and are another one's no more
    "network": ("width", "depth", "norm", "activation", "pooling"),
    "pool_network": ("pool_width", "pool_depth"),
}
_DIGITS = ("digits", "mnist", "svhn")  # a mirrored digit is none


def _key(default: Any, meaning: str, least: float | None = None) -> Any:
    return field(default=default, metadata={"help": meaning, "least": least})


@dataclass(frozen=True)
class Config:
    """The keys of a run. The defaults are DM + CM as published, for data without a recipe of its own."""

    recipe: str = _key("", "the recipe these keys come from")
    data: str = _key("digits", "digits, cifar10 or another known name, hf:NAME, or a folder of npz or image files")
    image_size: int | None = _key(None, "bring image files to so many pixels a side [default: they have one size]", 1)
    mean: tuple[float, ...] | None = _key(
        None, "mean of the pixels, a number a channel, or none: as published for known names, or measured"
    )
    std: tuple[float, ...] | None = _key(
        None, "deviation of the pixels, a number a channel, or none: as published for known names, or measured"
    )
    holdout: float = _key(0.0, "test on this part of the training images instead of the test images", 0)
    ipc: int = _key(10, "synthetic images per class", 1)
    init: str = _key("real", "what the synthetic images start from: real, untiled (real, not one a piece) or noise")
    iterations: int = _key(20000, "iterations of distillation", 1)
    method: str = _key("dm", "dm, or idm: networks that learn meanwhile, and a step for each class in turn")
    partition: int = _key(1, "small images along each side of a synthetic one, enlarged for matching and evaluation", 1)
    seed: int = _key(0, "every random number of the run is a function of this one", 0)
    device: str = _key("auto", "auto, cpu, cuda or cuda:N")
    batch_real: int = _key(256, "real images per class and iteration, at most the smallest class", 1)
    image_lr: float = _key(1.0, "learning rate of the synthetic images", 0)
    image_momentum: float = _key(0.5, "momentum of the synthetic images", 0)
    augmentation: str = _key("color_crop_cutout_flip_scale_rotate", "operations joined by _, or none")
    network: str = _key("convnet", "what matches and what evaluates: convnet, alexnet, vgg11 or resnet18")
    width: int | None = _key(None, "channels of the network [default: its own]", 1)
    depth: int | None = _key(None, "blocks of the ConvNet [default: 3]", 1)
    norm: str | None = _key(None, "instance, group, layer or none [default: its own, none of alexnet, or instance]")
    activation: str | None = _key(None, "of the ConvNet: relu, leakyrelu or sigmoid [default: relu]")
    pooling: str | None = _key(None, "of the ConvNet: avg, max or none [default: avg]")
    mean_weight: float = _key(1.0, "weight of distribution matching (DM)")
    covariance_weight: float = _key(0.01, "weight of covariance matching (IID)")
    local: str = _key("channels", "local descriptors of covariance matching: channels or rows")
    centralization_weight: float = _key(0.0, "weight of class centralization (IID); needs a pool")
    alpha: float | None = _key(None, "rate of the exponential form of class centralization [default: the plain form]")
    beta: float = _key(0.0, "threshold of the exponential form")
    cmi_weight: float = _key(0.0, "weight of conditional mutual information (CMI); needs a pool")
    cross_entropy_weight: float = _key(
        0.0, "weight of the cross-entropy (IDM), times the network's accuracy in percent"
    )
    queue_every: int = _key(30, "idm: a new network every N iterations", 1)
    queue_steps: int = _key(10, "idm: steps that each of two networks learns for after an iteration", 1)
    pool: str = _key("", "folder of pre-trained networks, made by ddfast pretrain")
    pool_count: int = _key(0, "without --pool: pre-train this many networks inside the run", 0)
    pool_epochs: int = _key(20, "... for so many epochs each", 1)
    pool_network: str = _key("resnet18", "... of this architecture")
    pool_width: int | None = _key(None, "... of this width [default: its own]", 1)
    pool_depth: int | None = _key(None, "... of this depth [default: its own]", 1)
    pool_weight_decay: float = _key(5e-4, "... with this weight decay, 5e-4 in IID and 1e-3 in CMI", 0)
    precision: str = _key("float32", "of the networks that images are matched in: float32, tf32 (CUDA only) or bf16")
    graph: bool = _key(True, "on CUDA, record an iteration once and replay it instead of launching its kernels singly")
    memory_budget: str = _key("512MiB", "memory for the activations of a chunk of classes")
    epochs: int = _key(1000, "epochs of an evaluation network", 1)
    repeats: int = _key(5, "evaluation networks for each set of images", 1)
    whole_epochs: int = _key(0, "epochs of the networks trained on the whole training set; 0 trains none", 0)
    eval_every: int | None = _key(None, "evaluate every N iterations; 0 never [default: at the end only]", 0)
    log_every: int = _key(1, "a line of metrics.jsonl every N iterations", 1)
    checkpoint_every: int = _key(100, "a checkpoint every N iterations", 1)
    tensorboard: bool = _key(False, "write metrics, accuracies and images for TensorBoard too, into RUN/tensorboard")

    def __post_init__(self) -> None:
        for key in dataclasses.fields(self):
            value, least = getattr(self, key.name), key.metadata["least"]
            _check_type(key.name, value, key_type(key.name))
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise UserError(f"{key.name} must be finite, got {value}")
            if least is not None and value is not None and value < least:
                raise UserError(f"{key.name} must be at least {least}, got {value}")
        choices = {
            "init": ("real", "untiled", "noise"),
            "method": ("dm", "idm"),
            "local": ("channels", "rows"),
            "precision": PRECISIONS,
        }
        for name, options in choices.items():
            if getattr(self, name) not in options:
                raise UserError(f"{name} must be {' or '.join(options)}, got {getattr(self, name)!r}")
        if not (self.mean_weight or self.covariance_weight or self.needs_pool):
            raise UserError("at least one of the four weights of DM, CM, CC and CMI must differ from 0")
        if self.cross_entropy_weight != 0 and self.method != "idm":
            raise UserError(f"cross_entropy_weight needs method idm, whose networks learn; got {self.method!r}")
        if self.beta != 0 and self.alpha is None:
            raise UserError(f"beta needs alpha, the rate of the exponential form; got beta {self.beta} alone")
        parse_strategy(self.augmentation)
        parse_bytes(self.memory_budget)
        if self.needs_pool and not self.pool and not self.pool_count:
            wanted = "cmi_weight" if self.cmi_weight else "centralization_weight"
            raise UserError(f"{wanted} needs pre-trained networks: give --pool, a folder made by ddfast pretrain")

    @property
    def needs_pool(self) -> bool:
        return self.centralization_weight != 0 or self.cmi_weight != 0

    def replace(self, **keys: Any) -> "Config":
        """This configuration with other values for some keys; an unknown key is refused."""
        known = [key.name for key in dataclasses.fields(self)]
        for name in keys:
            if name not in known:
                raise UserError(f"unknown key {name!r}{nearest(name, known)}")
        return dataclasses.replace(self, **{name: _from_toml(value) for name, value in keys.items()})

    def override(self, **keys: Any) -> "Config":
        """`replace`, but another network has a width, a depth and so on of its own, unless they are said too."""
        others = [name for name in _ITS_OWN if keys.get(name, getattr(self, name)) != getattr(self, name)]
        return self.replace(**{**{key: None for name in others for key in _ITS_OWN[name]}, **keys})

    def dumps(self) -> str:
        """As TOML; a key without a value is left out."""
        items = ((key.name, getattr(self, key.name)) for key in dataclasses.fields(self))
        # JSON's escapes of anything beyond the BMP are not TOML's, so such letters stay as they are.
        return "".join(
            f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in items if value is not None
        )

    @staticmethod
    def load(path: Path) -> "Config":
        """The configuration in a TOML file."""
        return Config().replace(**read_toml(path))


def defaults(data: str) -> Config:
    """The keys of a run on `data` without a recipe."""
    config = Config(data=data)
    return config.replace(augmentation=config.augmentation.replace("_flip", "")) if data in _DIGITS else config


def key_type(name: str) -> tuple[type, bool]:
    """The plain type of a key (tuple for numbers a channel), and whether None is a value of it."""
    hint = typing.get_type_hints(Config)[name]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(option for option in options if option is not types.NoneType)
    return typing.get_origin(kind) or kind, types.NoneType in options


def _check_type(name: str, value: Any, expected: tuple[type, bool]) -> None:
    kind, optional = expected
    if (value is None and optional) or _is(value, kind):
        return
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a string", tuple: "a list of numbers"}
    what = names[kind]
    raise UserError(f"{name} must be {what}, got {value!r}")


def _is(value: Any, kind: type) -> bool:
    if kind is tuple:
        return isinstance(value, tuple) and all(_is(number, float) for number in value)
    return isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)


def _from_toml(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def nearest(name: str, known: typing.Sequence[str]) -> str:
    """A hint at the known name that was perhaps meant."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error


def parse_bytes(text: str) -> int:
    """A size such as 512MiB, 2GB or 1000000."""
    units = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9, "": 1}
    number = text.strip().rstrip("KMGiB")
    unit = text.strip()[len(number) :]
    try:
        size = int(float(number) * units[unit])
    except (KeyError, ValueError, OverflowError):
        raise UserError(f"memory_budget must be a size such as 512MiB or 4GiB, got {text!r}") from None
    if size < 1:
        raise UserError(f"memory_budget must be positive, got {text!r}")
    return size
