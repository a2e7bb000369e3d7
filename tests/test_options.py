"""The keys of a run as options of the command line."""

import dataclasses
import os
import re
from collections.abc import Callable
from typing import Any

import pytest
from engine import options
from keys import KEYS, NEEDS, OTHER

from ddfast.cli import main
from ddfast.data import absolute_place
from ddfast.distill.config import Config, defaults, key_type
from ddfast.recipes import from_recipe


class Reached(Exception):
    """A run would begin now."""


class TestEveryKey:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
        """The configuration that a command line asks for; nothing runs."""

        def begin(config: Config, *_: Any, **__: Any) -> None:
            raise Reached(config)

        def config(*words: str) -> Config:
            monkeypatch.setattr("ddfast.cli.Run", begin)
            monkeypatch.setattr("sys.argv", ["ddfast", "distill", *words])
            with pytest.raises(Reached) as end:
                main()
            return end.value.args[0]

        return config

    @pytest.mark.parametrize("name", [name for name in KEYS if name != "recipe"])
    def test_is_an_option(self, asked: Callable[..., Config], name: str) -> None:
        keys = {**NEEDS.get(name, {}), name: OTHER[name]}
        words = {key: ",".join(map(repr, value)) if isinstance(value, tuple) else value for key, value in keys.items()}
        kept = {key: absolute_place(value) if key in ("data", "pool") else value for key, value in keys.items()}
        expected = dataclasses.asdict(defaults(keys.get("data", "digits")).replace(**kept))
        got = dataclasses.asdict(asked("--recipe", "", *options(words)))
        assert got == expected
        assert type(got[name]) is key_type(name)[0]

    def test_has_no_others_beside_it(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr("sys.argv", ["ddfast", "distill", "--help"])
        with pytest.raises(SystemExit) as end:
            main()
        shown = set(re.findall(r"^ *--([a-z-]+)", capsys.readouterr().out, re.MULTILINE))
        assert end.value.code == 0
        assert shown == {name.replace("_", "-") for name in KEYS} | {"out", "resume", "accept-data", "help"}

    def test_of_an_evaluation_have_no_defaults(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Those of the run hold, where there is one."""
        monkeypatch.setattr("sys.argv", ["ddfast", "evaluate", "--help"])
        with pytest.raises(SystemExit):
            main()
        shown = " ".join(capsys.readouterr().out.split())
        assert "--augmentation" in shown
        assert "[default: color" not in shown
        assert "[default: digits]" not in shown

    def test_override_the_recipe_and_nothing_else(self, asked: Callable[..., Config]) -> None:
        assert asked() == from_recipe("digits")
        assert asked("--width", "5") == from_recipe("digits").replace(width=5)
        assert asked("--data", "./digits") == Config(data=os.path.abspath("digits")), "from any folder"

    def test_another_network_has_its_own_size(self, asked: Callable[..., Config]) -> None:
        """A recipe's depth is that of its ConvNet, and no other network has one."""
        recipe = from_recipe("digits")
        own = dict.fromkeys(("width", "depth", "norm", "activation", "pooling"))
        assert asked("--network", "convnet") == recipe
        assert asked("--network", "vgg11") == recipe.replace(**own, network="vgg11")
        assert asked("--network", "vgg11", "--width", "7") == recipe.replace(**{**own, "network": "vgg11", "width": 7})
        pool = {"pool_network": "resnet18", "pool_width": None, "pool_depth": None}
        assert asked("--pool-network", "resnet18") == recipe.replace(**pool)

    def test_a_recipe_s_mean_can_be_left_out(self, asked: Callable[..., Config]) -> None:
        words = ["--recipe", "dm/cifar10-ipc10", "--data", "./data", "--mean", "none", "--std", "none"]
        assert asked(*words) == from_recipe("dm/cifar10-ipc10").replace(
            data=os.path.abspath("data"), mean=None, std=None
        )

    def test_digits_are_not_mirrored(self, asked: Callable[..., Config]) -> None:
        for data, flips in (("svhn", False), ("mnist", False), ("fashion-mnist", True), ("./svhn", True)):
            assert ("flip" in asked("--data", data).augmentation) is flips
        assert asked("--data", "svhn", "--augmentation", "flip").augmentation == "flip"
