"""The recipes: every one is a configuration, and the published constants are in it."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from keys import KEYS

import ddfast.recipes
from ddfast.distill.config import Config
from ddfast.errors import UserError
from ddfast.networks import NETWORKS
from ddfast.recipes import TEXTS, from_recipe, printed, recipes

FOLDER = Path(ddfast.recipes.__file__).parent
NAMES = sorted(recipes())
CHAINS = {
    "dm": ["dm"],
    "iid-dm": ["dm", "pooled", "iid-dm"],
    "cmi-dm": ["dm", "pooled", "cmi-dm"],
    "all-dm": ["dm", "pooled", "iid-dm", "cmi-dm", "all-dm"],
    "idm": ["dm", "idm"],
    "iid-idm": ["dm", "idm", "pooled", "iid-idm"],
}
METHODS, IDM_METHODS = list(CHAINS)[:4], list(CHAINS)[4:]

# Of the papers and their code; mean and std of the channels.
DATA: dict[str, dict[str, Any]] = {
    "cifar10": {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010), "depth": 3},
    "cifar100": {"mean": (0.5071, 0.4866, 0.4409), "std": (0.2673, 0.2564, 0.2762), "depth": 3},
    "svhn": {"mean": (0.4377, 0.4438, 0.4728), "std": (0.1980, 0.2010, 0.1970), "depth": 3},
    "tinyimagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "depth": 4},
}
LOOP = {
    "iterations": 20000,
    "batch_real": 256,
    "image_lr": 1.0,
    "image_momentum": 0.5,
    "init": "real",
    "network": "convnet",
    "width": 128,
    "norm": "instance",
    "mean_weight": 1.0,
    "epochs": 1000,
}
CMI = {
    ("svhn", 10): 18000,
    ("cifar10", 10): 8000,
    ("cifar100", 10): 2000,
    ("tinyimagenet", 10): 2000,
    ("svhn", 50): 500,
    ("cifar10", 50): 2000,
    ("cifar100", 50): 500,
    ("tinyimagenet", 50): 500,
}


# Cross-entropy, real images a class, iterations between two networks, steps of each.
IDM = {
    ("cifar10", 1): (0.5, 5000, 5, 10),
    ("cifar10", 10): (0.5, 256, 30, 10),
    ("cifar10", 50): (0.1, 256, 30, 10),
    ("cifar100", 1): (0.5, 500, 5, 10),
    ("cifar100", 10): (0.1, 256, 30, 50),
    ("cifar100", 50): (0.1, 256, 30, 10),
    ("tinyimagenet", 1): (0.5, 256, 30, 10),
    ("tinyimagenet", 10): (0.5, 256, 30, 10),
    ("tinyimagenet", 50): (0.8, 256, 30, 50),
}


def test_are_six_methods_on_four_data_sets_at_three_sizes_and_the_digits() -> None:
    expected = {f"{method}/{data}-ipc{ipc}" for method in CHAINS for data in DATA for ipc in (1, 10, 50)}
    assert set(NAMES) == {*expected, "digits"}


@pytest.mark.parametrize("name", NAMES)
def test_every_one_is_a_configuration(name: str) -> None:
    config, keys = from_recipe(name), recipes()[name]
    assert config.recipe == name
    assert keys["description"]
    assert name == "digits" or keys["source"]
    for key in keys.keys() - set(TEXTS):
        assert getattr(config, key) == (tuple(keys[key]) if isinstance(keys[key], list) else keys[key])
    assert {config.network, config.pool_network} <= set(NETWORKS)
    assert "\n\n" not in keys.get("source", "")
    assert "  " not in keys.get("source", "")


@pytest.mark.parametrize("ipc", [1, 10, 50])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_constants_are_those_of_the_papers(method: str, data: str, ipc: int) -> None:
    config = from_recipe(f"{method}/{data}-ipc{ipc}")
    assert {key: getattr(config, key) for key in LOOP} == LOOP
    assert {key: getattr(config, key) for key in DATA[data]} == DATA[data]
    assert config.data == data.replace("tiny", "tiny-")
    assert config.ipc == ipc
    flip = "" if data == "svhn" else "flip_"
    assert config.augmentation == f"color_crop_cutout_{flip}scale_rotate"
    iid, cmi = method in ("iid-dm", "all-dm") and ipc > 1, method in ("cmi-dm", "all-dm") and ipc > 1
    assert (config.covariance_weight, config.centralization_weight) == ((0.01, 0.05) if iid else (0, 0))
    assert (config.local, config.alpha) == ("channels", None)
    assert config.cmi_weight == (CMI[data, ipc] if cmi else 0)
    assert config.needs_pool == (iid or cmi)
    if config.needs_pool:
        assert (config.pool_network, config.pool_count, config.pool_epochs) == ("resnet18", 20, 20)
        assert config.pool_weight_decay == (5e-4 if iid else 1e-3)


@pytest.mark.parametrize(("data", "ipc"), [*IDM, *(("svhn", ipc) for ipc in (1, 10, 50))])
@pytest.mark.parametrize("method", IDM_METHODS)
def test_constants_of_idm(method: str, data: str, ipc: int) -> None:
    config = from_recipe(f"{method}/{data}-ipc{ipc}")
    chosen = (config.cross_entropy_weight, config.batch_real, config.queue_every, config.queue_steps)
    assert chosen == IDM.get((data, ipc), IDM["cifar10", ipc])
    assert (config.method, config.partition, config.image_lr, config.image_momentum) == ("idm", 2, 0.2, 0.5)
    assert (config.depth, config.init) == (3, "untiled" if data == "tinyimagenet" else "real")
    iid = method == "iid-idm"
    assert (config.covariance_weight, config.centralization_weight) == ((0.03, 0.01) if iid else (0, 0))
    assert config.local == ("rows" if iid and data == "tinyimagenet" else "channels")
    assert config.needs_pool == iid
    about = recipes()[f"{method}/{data}-ipc{ipc}"]["source"]
    assert ("inferred" in about) == (data in ("svhn", "tinyimagenet"))


@pytest.mark.parametrize("method", METHODS[1:])
def test_what_is_not_published_is_said(method: str) -> None:
    for data in DATA:
        for ipc in (1, 10, 50):
            about = recipes()[f"{method}/{data}-ipc{ipc}"]
            assert ("IPC 1:" in about["description"]) == (ipc == 1)
            assert "1,000 ResNet-18" in about["source"]
            assert ("inferred" in about["source"]) == (data == "tinyimagenet")
            assert ("do not combine" in about["source"]) == (method == "all-dm")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])
def test_no_constant_is_written_down_twice(name: str) -> None:
    """In what a recipe is put together from, a key that comes again has another value."""
    method, place = name.split("/")
    seen: dict[str, Any] = {}
    for file in CHAINS[method]:
        content = tomllib.loads((FOLDER / f"{file}.toml").read_text())
        for part in (content, *(content.get(table, {}) for table in (*place.split("-"), place))):
            for key in part.keys() & KEYS.keys():
                assert seen.get(key) != part[key], key
                seen[key] = part[key]


def test_tables_are_of_what_there_is() -> None:
    places = {*DATA, "ipc1", "ipc10", "ipc50", *(f"{data}-ipc{ipc}" for data in DATA for ipc in (1, 10, 50))}
    for path in FOLDER.glob("*.toml"):
        content = tomllib.loads(path.read_text())
        assert {key for key, value in content.items() if isinstance(value, dict)} <= places


def test_unknown_ones_are_refused_with_the_nearest() -> None:
    for wrong, near in (
        ("digit", "digits"),
        ("iid-dm/cifar-10-ipc10", "iid-dm/cifar10-ipc10"),
        ("dm/svhn", "dm/svhn-"),
    ):
        with pytest.raises(UserError, match=f"there is no recipe '{wrong}', only .* lists; did you mean '{near}"):
            from_recipe(wrong)
        with pytest.raises(UserError, match="there is no recipe"):
            printed(wrong)


def test_overrides_win() -> None:
    config = from_recipe("iid-dm/svhn-ipc10").replace(ipc=20, centralization_weight=0.1, pool="mine")
    assert (config.ipc, config.centralization_weight, config.pool) == (20, 0.1, "mine")
    assert config.replace(ipc=10, centralization_weight=0.05, pool="") == from_recipe("iid-dm/svhn-ipc10")


class TestFiles:
    @pytest.fixture
    def write(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
        monkeypatch.setattr(ddfast.recipes, "_FOLDER", tmp_path)
        return lambda name, text: (tmp_path / f"{name}.toml").write_text(text)

    def test_later_keys_win_and_texts_add_up(self, write: Any) -> None:
        write("a", 'description = "A"\nipc = 1\nseed = 1\n[x]\nseed = 2\ndescription = "on x"\n[ipc5]\nipc = 5\n')
        write("part", 'base = ["a"]\nsource = "Of a part."\nwidth = 8\n')
        write("b", 'base = ["a", "part"]\ndescription = "B"\nseed = 3\n[x-ipc5]\nwidth = 9\n')
        write("flat", 'description = "F"\nipc = 7\n')
        assert recipes() == {
            "a/x-ipc5": {"description": "A on x", "ipc": 5, "seed": 2},
            "b/x-ipc5": {"description": "A on x B", "source": "Of a part.", "ipc": 5, "seed": 3, "width": 9},
            "flat": {"description": "F", "ipc": 7},
        }
        assert from_recipe("b/x-ipc5") == Config(recipe="b/x-ipc5", ipc=5, seed=3, width=9)

    @pytest.mark.parametrize("text", ["cmi_weigth = 1", "[x]\ncmi_weigth = 1", "[x-ipc5]\ncmi_weigth = 1"])
    def test_an_unknown_key_is_refused_by_its_file_with_the_nearest(self, write: Any, text: str) -> None:
        write("good", 'description = "G"')
        write("bad", text)
        with pytest.raises(
            UserError, match=r"^bad\.toml has an unknown key 'cmi_weigth'; did you mean 'cmi_weight'\?$"
        ):
            from_recipe("good")
