"""What the commands do and say when nothing is wrong, and what `report --check` finds."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from engine import ALL, NO_PICTURES, POOL, SMALL, Outcome, contents, ddfast, options, save_npz, toy

from ddfast.distill.config import Config
from ddfast.distill.pretrain import trained
from ddfast.info import info_lines
from ddfast.recipes import from_recipe, recipes

QUICK = options({**SMALL, "ipc": 2, "batch_real": 8, "iterations": 2})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a finished run."""
    folder = tmp_path_factory.mktemp("commands")
    save_npz(folder / "data", toy())
    assert distill(folder, "--out", "run").code == 0
    return folder


def distill(folder: Path, *words: str, setup: str = NO_PICTURES) -> Outcome:
    return ddfast("distill", "--data", "./data", *QUICK, *words, cwd=folder, setup=setup)


class TestDistill:
    def test_says_how_it_went(self, folder: Path) -> None:
        outcome = distill(folder, "--out", "talks", setup="")
        assert (outcome.code, outcome.err) == (0, "")
        assert [re.sub(r"[\d.]+ s$", "SECONDS", line).split("  ")[0] for line in outcome.out.splitlines()] == [
            *("trained on", "random real images", "distilled images", "2 iterations in SECONDS"),
            *("class", "c0", "c1", "c2"),
            "pictures: talks/images.png, talks/curve.png",
        ]
        assert {"images.png", "curve.png"} <= set(contents(folder / "talks"))

    def test_shows_the_names_of_classes_as_they_are(self, folder: Path, tmp_path: Path) -> None:
        names = ["cat [/old]", "[red]c", ":smile:"]
        (save_npz(tmp_path / "data", toy()) / "classes.txt").write_text("\n".join(names) + "\n")
        outcome = distill(tmp_path, "--out", "run")
        assert (outcome.code, outcome.err) == (0, "")
        assert [re.split("  +", line)[0] for line in outcome.out.splitlines()[-4:-1]] == names

    def test_shows_plain_lines_where_there_is_no_terminal(self, folder: Path) -> None:
        setup = f"{NO_PICTURES}\nimport ddfast.report.progress as p; p._SECONDS_BETWEEN_LINES = 0"
        outcome = distill(folder, "--out", "lines", *options({**ALL, **POOL}), setup=setup)
        assert outcome.code == 0
        assert "\x1b" not in outcome.out
        assert "\r" not in outcome.out
        for work in (
            "pre-train 4/4",
            "network 2 of 2: ",
            "distil 2/2",
            "evaluate random 3/3",
            "evaluate distilled 3/3",
        ):
            assert any(line.startswith(work) for line in outcome.out.splitlines()), work
        (line,) = (line for line in outcome.out.splitlines() if line.startswith("distil 2/2"))
        assert all(f" {term} " in line for term in ("loss", "DM", "CM", "CC", "CMI"))

    def test_without_out_makes_a_folder_of_its_own(self, folder: Path) -> None:
        assert distill(folder).code == 0
        assert (folder / "runs" / "data-ipc2" / "synthetic.safetensors").exists()
        assert ddfast("distill", "--resume", "--data", "./data", "--ipc", "2", cwd=folder, setup=NO_PICTURES).code == 0

    def test_an_empty_recipe_is_none(self, folder: Path) -> None:
        outcome = ddfast("distill", "--recipe", "", *QUICK, cwd=folder, setup=NO_PICTURES)
        assert (outcome.code, outcome.err) == (0, "")
        stored = Config.load(folder / "runs" / "digits-ipc2" / "config.toml")
        assert (stored.recipe, stored.data, stored.needs_pool) == ("", "digits", False)

    def test_without_arguments_is_the_digits_recipe(self, folder: Path) -> None:
        tiny = options({**SMALL, **POOL, "iterations": 2, "whole_epochs": 0, "pool_epochs": 1})
        assert ddfast("distill", *tiny, cwd=folder, setup=NO_PICTURES).code == 0
        stored = Config.load(folder / "runs" / "digits-ipc10" / "config.toml")
        given = {**SMALL, **POOL, "iterations": 2, "whole_epochs": 0, "pool_epochs": 1}
        assert stored == from_recipe("digits").replace(**given)
        evaluation = json.loads((folder / "runs" / "digits-ipc10" / "evaluation.json").read_text())
        assert evaluation["distilled"]["images"] == 100

    def test_takes_a_folder_of_any_name(self, folder: Path) -> None:
        save_npz(folder / 'a "quoted" \U0001f600 é', toy())
        data = ["--data", './a "quoted" \U0001f600 é', "--out", "any"]
        assert distill(folder, *data).code == 0
        assert distill(folder, *data, "--resume").code == 0

    def test_more_iterations_continue(self, folder: Path) -> None:
        assert distill(folder, "--out", "more").code == 0
        assert distill(folder, "--out", "more", "--iterations", "5", "--resume").code == 0
        assert distill(folder, "--out", "at once", "--iterations", "5").code == 0
        more = contents(folder / "more")
        assert more["curve.jsonl"].pop(0)["iteration"] == 2
        assert more == contents(folder / "at once")
        assert len((folder / "more" / "metrics.jsonl").read_text().splitlines()) == 5

    def test_a_recipe_leaves_open_what_a_run_from_before_says(self, folder: Path) -> None:
        """norm had a value for every network once; what a recipe does not say is not asked for."""
        keys = ["--recipe", "digits", "--out", "before", *options({**SMALL, **POOL, "iterations": 1, "eval_every": 0})]
        assert ddfast("distill", *keys, cwd=folder, setup=NO_PICTURES).code == 0
        path = folder / "before" / "config.toml"
        assert "norm" not in path.read_text()
        path.write_text(path.read_text() + 'norm = "instance"\n')
        assert ddfast("distill", *keys, "--resume", cwd=folder, setup=NO_PICTURES).code == 0
        said = ddfast("distill", *keys, "--resume", "--norm", "group", cwd=folder, setup=NO_PICTURES).mistake(2)
        assert said.startswith("norm is 'instance' in this run, not 'group'")


class TestPretrain:
    def test_trains_as_it_is_told(self, folder: Path) -> None:
        keys = {"epochs": 2, "network": "convnet", "width": 4, "depth": 1, "norm": "group", "weight_decay": 1e-3}
        keys |= {"seed": 7, "precision": "bf16", "augmentation": "crop", "activation": "leakyrelu", "pooling": "max"}
        words = options({"data": "./data", "count": 2, "out": "networks", "device": "cpu", **keys})
        outcome = ddfast("pretrain", *words, cwd=folder)
        assert (outcome.code, outcome.err) == (0, "")
        *_, title, first, second, last = outcome.out.splitlines()
        assert title.split() == ["network", "accuracy", "seconds"]
        for line, row in zip((first, second), trained(folder / "networks"), strict=True):
            accuracy, seconds = f"{row['accuracy']:.1f}", f"{row['seconds']:.1f}"
            assert line.split() == [row["network"], accuracy, "%", seconds]
        assert last == "2 networks in networks"
        about = json.loads((folder / "networks" / "pool.json").read_text())
        assert {name: about[name] for name in keys} == keys
        again = ddfast("pretrain", *words, cwd=folder)
        assert again.out.splitlines() == [title, first, second, last]


class TestReport:
    def check(self, folder: Path, random: float | None, distilled: float) -> Outcome:
        path = folder / "run" / "evaluation.json"
        table = json.loads(path.read_text())
        row = {"std": 1.0, "runs": [1.0, 2.0], "images": 6, "per_class": [40.0, None, 50.0]}
        table = {"distilled": {**row, "mean": distilled}}
        if random is not None:
            table["random"] = {**row, "mean": random}
        held = path.read_bytes()
        path.write_text(json.dumps(table))
        try:
            return ddfast("report", "run", "--check", cwd=folder)
        finally:
            path.write_bytes(held)

    def test_prints_the_table(self, folder: Path) -> None:
        outcome = ddfast("report", "run", cwd=folder)
        assert (outcome.code, outcome.err) == (0, "")
        table = json.loads((folder / "run" / "evaluation.json").read_text())
        words = [line.split() for line in outcome.out.splitlines()]
        for name, row in (("random real images", "random"), ("distilled images", "distilled")):
            assert [*name.split(), "6", f"{table[row]['mean']:.1f}", "±", "0.0", "%", "1"] in words
        assert ["c1", *(f"{table[row]['per_class'][1]:.1f}" for row in ("random", "distilled"))] in words

    def test_check_says_whether_distilled_beats_random(self, folder: Path) -> None:
        assert self.check(folder, 40.0, 40.1).code == 0
        for distilled in (40.0, 39.9):
            outcome = self.check(folder, 40.0, distilled)
            assert outcome.mistake(1) == "the distilled images are no better than random real ones"
            assert "distilled images" in outcome.out

    def test_check_needs_both(self, folder: Path) -> None:
        said = self.check(folder, None, 40.0).mistake(2)
        assert said == "run holds no evaluation of random images to compare with"

    def test_a_class_without_test_images_has_no_accuracy(self, folder: Path) -> None:
        lines = self.check(folder, 40.0, 50.0).out.splitlines()
        assert [line.split() for line in lines if line.startswith("c1")] == [["c1", "–", "–"]]

    @pytest.mark.parametrize("name", ["evaluation.json", "synthetic.safetensors"])
    def test_broken_files_are_named(self, folder: Path, name: str) -> None:
        path = folder / "run" / name
        held = path.read_bytes()
        path.write_bytes(b"{")
        said = ddfast("report", "run", cwd=folder).mistake(2)
        path.write_bytes(held)
        assert said.startswith(f"run/{name} is not ")

    def test_a_run_without_evaluation_says_so(self, folder: Path) -> None:
        assert distill(folder, "--out", "bare", "--eval-every", "0").code == 0
        said = ddfast("report", "bare", cwd=folder).mistake(2)
        assert said == "bare holds no evaluation; ddfast evaluate makes one"
        assert ddfast("evaluate", "bare", cwd=folder).code == 0
        assert ddfast("report", "bare", cwd=folder).code == 0


class TestTellingAboutItself:
    @pytest.mark.parametrize("words", [[], ["--help"]])
    def test_help_lists_every_command(self, folder: Path, words: list[str]) -> None:
        outcome = ddfast(*words, cwd=folder)
        assert (outcome.code, outcome.err) == (0, "")
        listed = {line.split()[0] for line in outcome.out.splitlines() if line.startswith("  ") and line.split()}
        assert {"distill", "sweep", "pretrain", "evaluate", "report", "recipes", "info"} <= listed

    def test_info(self, folder: Path) -> None:
        outcome = ddfast("info", cwd=folder)
        assert outcome.code == 0
        lines = outcome.out.splitlines()
        assert lines[0].startswith("ddfast ")
        assert any(line.startswith("torch ") and "triton" in line and "CUDA" in line for line in lines)
        assert "backends on cpu:" in lines
        assert any("moment_matching" in line and " runs " in line for line in lines)

    def test_info_names_missing_extras(self, monkeypatch: pytest.MonkeyPatch) -> None:
        here: set[str] = set()
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in here else None)
        missing = [line for line in info_lines() if line.startswith("missing: ")]
        extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
        extras = set(extras["optional-dependencies"]) - {"test", "lint"}
        assert {line.split("'")[1] for line in missing} == {f"ddfast[{extra}]" for extra in extras}
        assert "missing: matplotlib, PIL; pip install 'ddfast[plot]'" in missing
        here |= {"matplotlib", "PIL", "sklearn", "torchvision", "datasets", "tensorboard"}
        assert [line for line in info_lines() if line.startswith("missing: ")] == [
            "missing: scipy; pip install 'ddfast[torchvision]'"
        ]

    def test_recipes(self, folder: Path) -> None:
        lines = ddfast("recipes", cwd=folder).out.splitlines()
        assert [tuple(line.split(maxsplit=1)) for line in lines] == [
            (name, keys["description"]) for name, keys in recipes().items()
        ]

    @pytest.mark.parametrize("name", ["digits", "all-dm/tinyimagenet-ipc50"])
    def test_a_recipe_is_printed_as_it_can_be_written(self, folder: Path, name: str) -> None:
        outcome = ddfast("recipes", name, cwd=folder)
        (folder / "printed.toml").write_text(outcome.out)
        assert Config.load(folder / "printed.toml") == from_recipe(name)
        said = " ".join(line.removeprefix("# ") for line in outcome.out.splitlines() if line.startswith("# "))
        assert said == " ".join(recipes()[name].get(text, "") for text in ("description", "source")).strip()

    def test_a_run_of_a_recipe_has_its_name(self, folder: Path) -> None:
        words = ["--recipe", "dm/cifar10-ipc1", "--data", "./data", "--mean", "0.5", "--std", "0.5"]
        quick = options({**SMALL, "batch_real": 8, "iterations": 1, "eval_every": 0})
        for ipc in ([], ["--ipc", "2"]):
            assert ddfast("distill", *words, *quick, *ipc, cwd=folder, setup=NO_PICTURES).code == 0
        runs = {path.name for path in (folder / "runs").iterdir()}
        assert {"dm-cifar10-ipc1", "dm-cifar10-ipc1-ipc2"} <= runs
        again = ["distill", "--recipe", "dm/cifar10-ipc1", "--resume"]
        data = ["--data", "./data", "--mean", "0.5", "--std", "0.5", *quick]
        assert ddfast(*again, *data, cwd=folder, setup=NO_PICTURES).code == 0
