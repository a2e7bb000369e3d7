"""The keys of a run: defaults, TOML, the command line, recipes, and what each refuses."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from keys import KEYS, OTHER, alone

import ddfast.recipes
from ddfast.distill.config import Config, from_recipe, key_type, parse_bytes, read_toml, recipes
from ddfast.errors import UserError
from ddfast.networks import NETWORKS

PUBLISHED = {
    "data": "digits",
    "image_size": None,
    "mean": None,
    "std": None,
    "holdout": 0.0,
    "ipc": 10,
    "init": "real",
    "iterations": 20000,
    "batch_real": 256,
    "image_lr": 1.0,
    "image_momentum": 0.5,
    "augmentation": "color_crop_cutout_flip_scale_rotate",
    "network": "convnet",
    "width": None,
    "depth": None,
    "norm": "instance",
    "mean_weight": 1.0,
    "covariance_weight": 0.01,
    "local": "channels",
    "centralization_weight": 0.0,
    "alpha": None,
    "beta": 0.0,
    "cmi_weight": 0.0,
    "pool": "",
    "pool_count": 0,
    "pool_network": "resnet18",
    "epochs": 1000,
    "repeats": 5,
    "eval_every": None,
    "log_every": 1,
}

AT_LEAST_ONE = (
    *("image_size", "ipc", "iterations", "batch_real", "width", "depth", "pool_epochs", "pool_width", "pool_depth"),
    *("epochs", "repeats", "log_every", "checkpoint_every"),
)
AT_LEAST_ZERO = ("holdout", "seed", "image_lr", "image_momentum", "pool_count", "whole_epochs", "eval_every")


def through_toml(config: Config, folder: Path) -> Config:
    (folder / "config.toml").write_text(config.dumps(), "utf-8")
    return Config.load(folder / "config.toml")


class TestDefaults:
    def test_are_dm_and_cm_as_published(self) -> None:
        assert {name: getattr(Config(), name) for name in PUBLISHED} == PUBLISHED


class TestToml:
    @pytest.mark.parametrize("name", KEYS)
    def test_every_key_comes_back(self, tmp_path: Path, name: str) -> None:
        config = alone(name)
        again = through_toml(config, tmp_path)
        assert getattr(config, name) != getattr(Config(), name)
        assert again == config
        assert type(getattr(again, name)) is type(getattr(config, name))

    def test_all_keys_come_back_together(self, tmp_path: Path) -> None:
        config = Config(**OTHER)
        assert through_toml(config, tmp_path) == config
        assert through_toml(Config(), tmp_path) == Config()

    def test_is_one_line_a_key_and_leaves_out_none(self) -> None:
        lines = Config().dumps().splitlines()
        written = [line.split(" = ")[0] for line in lines]
        assert written == [name for name in KEYS if getattr(Config(), name) is not None]
        assert tomllib.loads(Config().dumps())["image_momentum"] == 0.5

    def test_broken_files_are_named(self, tmp_path: Path) -> None:
        path = tmp_path / "config.toml"
        with pytest.raises(UserError, match=r"config\.toml cannot be read: No such file"):
            read_toml(path)
        path.write_text("ipc = = 1")
        with pytest.raises(UserError, match=r"config\.toml is not valid TOML: .*line 1"):
            read_toml(path)
        path.write_bytes(b'data = "\xff"')
        with pytest.raises(UserError, match=r"config\.toml is not valid TOML"):
            read_toml(path)


class TestRefusals:
    @pytest.mark.parametrize(
        ("wrong", "near"),
        [("iteration", "iterations"), ("wdith", "width"), ("cmi_weigth", "cmi_weight"), ("batch-real", "batch_real")],
    )
    def test_an_unknown_key_is_refused_with_the_nearest(self, wrong: str, near: str) -> None:
        with pytest.raises(UserError, match=f"unknown key '{wrong}'; did you mean '{near}'"):
            Config().replace(**{wrong: 1})

    def test_no_hint_without_a_near_one(self) -> None:
        with pytest.raises(UserError, match=r"^unknown key 'qqqqqq'$"):
            Config().replace(qqqqqq=1)

    @pytest.mark.parametrize("name", KEYS)
    def test_wrong_types(self, name: str) -> None:
        kind, optional = key_type(name)
        wrong = {
            bool: [1, 0.0, "true"],
            int: ["1", 1.0, True, [1]],
            float: ["1", True, [1.0]],
            str: [1, None, ["a"]],
            tuple: [1.0, "1", "abc"],
        }
        what = "true or false|an integer|a number|a string|a list of numbers"
        for value in [*wrong[kind], *([] if optional else [None])]:
            with pytest.raises(UserError, match=f"^{name} must be ({what}), got"):
                Config().replace(**{name: value})

    @pytest.mark.parametrize("value", [["a"], [True], [None], [[0.5]]])
    def test_wrong_elements(self, value: list[Any]) -> None:
        with pytest.raises(UserError, match=r"^mean must be a list of numbers"):
            Config().replace(mean=value)

    @pytest.mark.parametrize("name", AT_LEAST_ONE + AT_LEAST_ZERO)
    def test_bounds(self, name: str) -> None:
        kind, least = key_type(name)[0], int(name in AT_LEAST_ONE)
        Config().replace(**{name: kind(least)})
        for value in (least - 1, -(10**9)):
            with pytest.raises(UserError, match=f"^{name} must be at least {least}, got {kind(value)}"):
                Config().replace(**{name: kind(value)})

    def test_every_number_but_weights_has_a_bound(self) -> None:
        numbers = {name for name in KEYS if key_type(name)[0] in (int, float)}
        free = numbers - set(AT_LEAST_ONE + AT_LEAST_ZERO)
        assert free == {"mean_weight", "covariance_weight", "centralization_weight", "cmi_weight", "alpha", "beta"}

    @pytest.mark.parametrize("name", [name for name in KEYS if key_type(name)[0] is float])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_not_finite(self, name: str, value: float) -> None:
        with pytest.raises(UserError, match=f"^{name} must be (finite|at least)"):
            Config().replace(**{name: value})

    def test_statistics_that_are_not_finite(self) -> None:
        for name in ("mean", "std"):
            with pytest.raises(UserError, match=f"^{name} must be finite"):
                Config().replace(**{name: (0.5, float("nan"), 0.5)})

    def test_no_loss_at_all(self) -> None:
        with pytest.raises(UserError, match="at least one of the four weights"):
            Config(mean_weight=0.0, covariance_weight=0.0)
        for weights in ({"covariance_weight": 1.0}, {"cmi_weight": 1.0, "pool": "p"}):
            Config(**{"mean_weight": 0.0, "covariance_weight": 0.0, **weights})

    @pytest.mark.parametrize("name", ["centralization_weight", "cmi_weight"])
    def test_weights_that_need_a_pool(self, name: str) -> None:
        with pytest.raises(UserError, match=f"^{name} needs pre-trained networks: give --pool"):
            Config(**{name: 1.0})
        Config(**{name: 1.0}, pool="some/folder")
        Config(**{name: 1.0}, pool_count=1)

    def test_beta_needs_alpha(self) -> None:
        with pytest.raises(UserError, match=r"^beta needs alpha"):
            Config(beta=1.0)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("init", "zeros", "init must be real or noise, got 'zeros'"),
            ("local", "columns", "local must be channels or rows, got 'columns'"),
            ("augmentation", "color_flop", "'flop'.*did you mean flip"),
            ("memory_budget", "lots", "memory_budget must be a size such as 512MiB"),
        ],
    )
    def test_other_words(self, name: str, value: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            Config().replace(**{name: value})


SIZES = {
    "1": 1,
    "1000000": 10**6,
    "512MiB": 512 * 2**20,
    "512 MiB": 512 * 2**20,
    " 3KiB ": 3 * 2**10,
    "1.5GiB": 3 * 2**29,
    "2KB": 2000,
    "2MB": 2 * 10**6,
    "4GB": 4 * 10**9,
    "1e3": 1000,
    "0.5KiB": 512,
}


class TestBytes:
    @pytest.mark.parametrize("text", SIZES)
    def test_sizes(self, text: str) -> None:
        assert parse_bytes(text) == SIZES[text]

    @pytest.mark.parametrize(
        "text", ["", "MiB", "12mib", "12M", "1TiB", "twelve", "1,5GiB", "nan", "inf", "1 2", "--", "0x10", "5MiBMiB"]
    )
    def test_no_sizes(self, text: str) -> None:
        with pytest.raises(UserError, match="memory_budget must be a size such as 512MiB or 4GiB, got"):
            parse_bytes(text)

    @pytest.mark.parametrize("text", ["0", "0MiB", "-1", "-512MiB", "0.4"])
    def test_too_small(self, text: str) -> None:
        with pytest.raises(UserError, match="memory_budget must be positive"):
            parse_bytes(text)


class TestRecipes:
    @pytest.mark.parametrize("name", sorted(recipes()))
    def test_every_one_loads(self, name: str) -> None:
        config, keys = from_recipe(name), recipes()[name]
        assert config.recipe == name
        assert keys.pop("description")
        assert keys
        for key, value in keys.items():
            assert getattr(config, key) == (tuple(value) if isinstance(value, list) else value)
        assert {config.network, config.pool_network} <= set(NETWORKS)

    def test_are_all_the_files(self) -> None:
        folder = Path(ddfast.recipes.__file__).parent
        files = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.toml")}
        assert set(recipes()) == files
        assert "digits" in files

    def test_unknown_ones_are_refused_with_the_nearest(self) -> None:
        with pytest.raises(UserError, match=r"there is no recipe 'digit', only .*digits.*; did you mean 'digits'"):
            from_recipe("digit")
