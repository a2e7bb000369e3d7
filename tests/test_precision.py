"""The precision of the networks: what follows it, and what stays float32."""

from pathlib import Path

import pytest
import torch
from engine import ALL, contents, make_config, make_distiller, make_pool, make_state, run_here, toy
from torch import Tensor

from ddfast import keyed
from ddfast.data import Dataset
from ddfast.distill import run
from ddfast.distill.config import Config
from ddfast.distill.loop import Distiller
from ddfast.distill.pool import Pool
from ddfast.distill.precision import PRECISIONS, convert
from ddfast.errors import UserError
from ddfast.networks import Network, build, draw_weights

CPU = torch.device("cpu")
WEIGHTS = {"mean_weight": 1.0, "covariance_weight": 0.3, "centralization_weight": 0.02, "cmi_weight": 500.0}
CONFIG = Config(**WEIGHTS, ipc=5, batch_real=12, width=16, depth=2, pool="given")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return toy(classes=4, per_class=12, channels=3, size=16)


@pytest.fixture(scope="module")
def folder(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    make_pool(folder, dataset, width=16)
    return folder


def step(dataset: Dataset, folder: Path, precision: str, **keys: object) -> tuple[Tensor, Tensor]:
    """The gradient of the images and the terms of one iteration."""
    config = CONFIG.replace(precision=precision, **keys)
    distiller = make_distiller(config, dataset, Pool.load(folder, dataset, precision))
    convert(distiller.network, precision, CPU)
    state = make_state(config, dataset)
    state.momentum.zero_()
    terms = distiller.iterate(state)
    assert {state.images.dtype, state.momentum.dtype, terms.dtype} == {torch.float32}
    return state.momentum, terms


@pytest.mark.parametrize("only", [*WEIGHTS, "all"])
def test_bf16_differs_by_its_rounding_alone(only: str, dataset: Dataset, folder: Path) -> None:
    keys = {} if only == "all" else {**dict.fromkeys(ALL, 0.0), only: WEIGHTS[only]}
    (exact, terms), (gradient, rough) = (step(dataset, folder, name, **keys) for name in ("float32", "bf16"))
    assert not torch.equal(gradient, exact)
    assert torch.cosine_similarity(gradient.flatten(), exact.flatten(), 0) > 0.99
    assert 0.95 < gradient.norm() / exact.norm() < 1.05
    torch.testing.assert_close(rough, terms, rtol=0.02, atol=0)


def test_weights_are_drawn_alike() -> None:
    """Those of bf16 are the float32 ones rounded: uniform numbers of 8 bits would have a mean that is not 0."""
    keys = {"channels": 3, "num_classes": 5, "size": (16, 16), "device": "cpu"}
    networks = [build("convnet", **keys, generator=torch.Generator()) for _ in PRECISIONS]
    for network, precision in zip(networks, PRECISIONS, strict=True):
        draw_weights(convert(network, precision, CPU), keyed.generator(1, 2, "test", CPU))
    exact, tf32, bf16 = (torch.cat([p.flatten() for p in network.parameters()]) for network in networks)
    assert torch.equal(tf32, exact)
    assert torch.equal(bf16, exact.to(torch.bfloat16))


def test_a_pool_is_loaded_in_that_precision(dataset: Dataset, folder: Path) -> None:
    for precision, dtype in zip(PRECISIONS, (torch.float32, torch.float32, torch.bfloat16), strict=True):
        parameters = [p for network in Pool.load(folder, dataset, precision).networks for p in network.parameters()]
        assert {p.dtype for p in parameters} == {dtype}
        assert not any(p.requires_grad for p in parameters)


@pytest.mark.parametrize("outside", ["ieee", "tf32"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_convolutions_on_cuda_are_what_the_key_says(
    precision: str, outside: str, dataset: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, seen = torch.backends.cudnn.conv, set()
    right = Network.features

    def features(self: Network, x: Tensor) -> Tensor:
        seen.add(flags.fp32_precision)
        return right(self, x)

    monkeypatch.setattr(Network, "features", features)
    before = flags.fp32_precision
    try:
        flags.fp32_precision = outside
        step(dataset, folder, precision)
        monkeypatch.setattr(Distiller, "_simplify", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            step(dataset, folder, precision)
        assert flags.fp32_precision == outside
    finally:
        flags.fp32_precision = before
    assert seen == {"tf32" if precision == "tf32" else "ieee"}


def test_a_run_keeps_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "save_grid", lambda *_: None)
    monkeypatch.setattr(run, "save_curve", lambda *_, **__: None)
    config = make_config(tmp_path).replace(precision="bf16")
    run_here(config, tmp_path / "whole")
    run_here(config.replace(iterations=3), tmp_path / "run")
    run_here(Config.load(tmp_path / "run" / "config.toml").replace(iterations=6), tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    run_here(config.replace(precision="float32"), tmp_path / "float32")
    assert contents(tmp_path / "float32")["metrics.jsonl"] != contents(tmp_path / "whole")["metrics.jsonl"]


def test_tf32_is_refused_where_there_is_none(tmp_path: Path) -> None:
    config = make_config(tmp_path).replace(precision="tf32")
    with pytest.raises(UserError, match="precision tf32 needs a CUDA device, got cpu: there is float32 or bf16"):
        run_here(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
