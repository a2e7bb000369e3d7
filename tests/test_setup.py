"""From the keys of a run to the things they name: every key arrives."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from engine import save_npz, toy
from keys import OTHER
from pictures import save_image_folder

from ddfast.distill.config import Config
from ddfast.distill.setup import find_device, labels_of, load_data, pool_config, protocol_of
from ddfast.errors import UserError
from ddfast.training import build_network

CPU = torch.device("cpu")


def test_the_protocol_has_the_keys_of_the_run() -> None:
    got = asdict(protocol_of(Config(**OTHER)))
    network = {"network", "width", "depth", "norm", "activation", "pooling"}
    names = {*network, "augmentation", "partition", "epochs", "repeats", "seed"}
    assert got == {name: OTHER[name] for name in names}


def test_a_network_has_the_keys_of_the_run() -> None:
    keys = {"width": 4, "depth": 2, "norm": "group", "activation": "sigmoid", "pooling": "max"}
    built = build_network(Config(**keys), toy()).config
    assert {name: built[name] for name in keys} == keys


def test_the_pool_inside_a_run_has_keys_of_its_own() -> None:
    own = {name: OTHER[f"pool_{name}"] for name in ("epochs", "network", "width", "depth", "weight_decay")}
    shared = {name: OTHER[name] for name in ("seed", "precision")}
    published = {"augmentation": "none", "norm": None, "activation": None, "pooling": None}
    assert asdict(pool_config(Config(**OTHER))) == {**own, **shared, **published}


def test_data_is_held_out_and_normalised_as_asked(tmp_path: Path) -> None:
    config = Config(data=str(save_npz(tmp_path, toy())), holdout=0.25, mean=(0.3,), std=(0.2,))
    dataset = load_data(config, CPU)
    assert (dataset.train.counts, dataset.test.counts) == ((9, 9, 9), (3, 3, 3))
    assert (dataset.mean, dataset.std) == ((0.3,), (0.2,))
    everything = load_data(Config(data=str(tmp_path)), CPU)
    assert (everything.train.counts, everything.test.counts) == ((12, 12, 12), (5, 5, 5))
    assert (everything.mean, everything.std) == (toy().mean, toy().std)


def test_image_files_are_brought_to_the_size_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path / "cache"))
    folder = save_image_folder(tmp_path / "insects")
    assert load_data(Config(data=str(folder)), CPU).size == (6, 6)
    assert load_data(Config(data=str(folder), image_size=4), CPU).size == (4, 4)


def test_labels_are_sorted_by_class() -> None:
    assert labels_of(Config(ipc=3), toy(2)).tolist() == [0, 0, 0, 1, 1, 1]


def test_devices_have_names() -> None:
    assert find_device("cpu") == CPU
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "meta", "", "cpu:x", "cuda:9999"):
        with pytest.raises(UserError, match=r"^device "):
            find_device(name)
