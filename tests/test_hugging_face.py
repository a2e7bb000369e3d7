"""Hugging Face's sets, through a stand-in for the few things of `datasets` that are used."""

import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pictures import Heard, picture, pixels, refused

from ddfast.data import load


@dataclass(frozen=True)
class Image:
    decode: bool = True


@dataclass(frozen=True)
class ClassLabel:
    names: list[str]


@dataclass(frozen=True)
class Rows:
    """A split as `datasets.Dataset` shows it: encoded images come out of a column only once it is cast so."""

    rows: list[dict[str, Any]]
    features: dict[str, Any]
    cache_files: list[dict[str, str]]
    _fingerprint: str

    def __getitem__(self, column: str) -> list[Any]:
        return [row[column] for row in self.rows]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            yield {name: row[name] if kind != Image() else f"decoded {name}" for name, kind in self.features.items()}

    def cast_column(self, name: str, kind: object) -> "Rows":
        return replace(self, features={**self.features, name: kind})

    def select_columns(self, names: list[str]) -> "Rows":
        return replace(self, features={name: self.features[name] for name in names})


def encoded(seed: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


class Hub:
    """Splits by name, in a file of their own each, and how they were asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.files, self.splitless = folder, [], True, False
        self.names: dict[str, list[str]] = {}  # of the fine classes in a split, where they are others
        self.features: dict[str, Any] = {
            "img": Image(),
            "note": "string",
            "coarse": ClassLabel(["animal", "plant"]),
            "fine": ClassLabel(["ant", "bee", "cup"]),
        }
        self.labels = {"train": [2, 0, 1, 0], "test": [1, 0]}

    def splits(self) -> dict[str, Rows]:
        made = {}
        for split, labels in self.labels.items():
            file = self.folder / f"{split}.arrow"
            if not file.exists():
                file.write_text(split)
            rows = [
                {"img": encoded(10 * (split == "train") + n), "note": "x", "coarse": 0, "fine": label}
                for n, label in enumerate(labels)
            ]
            features = (
                {**self.features, "fine": ClassLabel(self.names[split])} if split in self.names else self.features
            )
            made[split] = Rows(rows, features, [{"filename": str(file)}] if self.files else [], file.read_text())
        return made

    def load_dataset(self, name: str, config: str | None) -> dict[str, Rows]:
        self.calls.append((name, config))
        return self.splits()

    def load_from_disk(self, name: str) -> Any:
        self.calls.append(name)
        return self.splits()["train"] if self.splitless else self.splits()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path / "cache"))
    hub, module = Hub(tmp_path), ModuleType("datasets")
    module.Image, module.ClassLabel = Image, ClassLabel
    module.load_dataset, module.load_from_disk = hub.load_dataset, hub.load_from_disk
    monkeypatch.setitem(sys.modules, "datasets", module)
    return hub


class TestHuggingFace:
    def test_images_and_the_finest_labels(self, hub: Hub) -> None:
        dataset = load("hf:somebody/animals")
        assert (dataset.name, dataset.classes) == ("animals", ("ant", "bee", "cup"))
        assert (dataset.train.counts, dataset.test.counts) == ((2, 1, 1), (1, 1, 0))
        expected = [pixels(picture(seed)) for seed in (11, 13, 12, 10)]
        assert torch.equal(dataset.train.images, torch.stack(expected))
        assert torch.equal(dataset.test.images, torch.stack([pixels(picture(seed)) for seed in (1, 0)]))

    @pytest.mark.parametrize(
        ("data", "call"),
        [("hf:mnist", ("mnist", None)), ("hf:a/b", ("a/b", None)), ("hf:a/b:small", ("a/b", "small"))],
    )
    def test_names_and_configurations(self, hub: Hub, data: str, call: tuple[str, str | None]) -> None:
        load(data)
        assert hub.calls == [call]

    def test_folders_of_save_to_disk(self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "saved").mkdir()
        (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
        assert load(f"hf:{tmp_path}/saved").name == "saved"
        assert hub.calls == [f"{tmp_path}/saved"]
        monkeypatch.chdir(tmp_path)
        ear = Heard()
        load("hf:saved", progress=ear)
        assert ear.meters == []
        (tmp_path / "test.arrow").write_text("something else")
        load("hf:saved", progress=ear)
        assert ear.lines == [f"hf:{tmp_path}/saved has changed since it was decoded, and is decoded again"]

    def test_the_home_folder_is_found(self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "saved").mkdir()
        (tmp_path / "saved" / "dataset_dict.json").write_text("{}")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert load("hf:~/saved").name == "saved"
        assert hub.calls == [f"{tmp_path}/saved"]

    @pytest.mark.parametrize("files", [True, False], ids=["files", "memory"])
    def test_is_decoded_once_until_it_changes(self, hub: Hub, tmp_path: Path, files: bool) -> None:
        hub.files = files
        ears = [Heard() for _ in range(3)]
        load("hf:a/b", progress=ears[0])
        load("hf:a/b", progress=ears[1])
        (tmp_path / "test.arrow").write_text("something else")
        load("hf:a/b", progress=ears[2])
        assert [ear.meters for ear in ears] == [[["decode b", 6, 6]], [], [["decode b", 6, 6]]]
        assert ears[2].lines == ["hf:a/b has changed since it was decoded, and is decoded again"]

    def test_configurations_are_told_apart(self, hub: Hub) -> None:
        load("hf:a/b:one")
        ear = Heard()
        load("hf:a/b:two", progress=ear)
        assert (len(ear.meters), ear.lines) == (1, [])

    def test_images_are_resized(self, hub: Hub) -> None:
        assert load("hf:a/b", image_size=3).size == (3, 3)

    @pytest.mark.parametrize("name", ["validation", "valid"])
    def test_validation_tests_where_there_is_no_test(self, hub: Hub, name: str) -> None:
        hub.labels[name] = hub.labels.pop("test")
        assert load("hf:a/b").test.counts == (1, 1, 0)

    def test_which_of_two_tests_is_taken_is_said(self, hub: Hub) -> None:
        hub.labels["validation"] = [0, 1, 2]
        ear = Heard()
        assert load("hf:a/b", progress=ear).test.counts == (1, 1, 0)
        assert ear.lines == ["hf:a/b has test and validation: test is the test split"]

    @pytest.mark.parametrize("labels", [{}, {"test": [0, -1]}, {"test": []}, {"other": [0, 1]}])
    def test_without_labelled_test_images_the_test_split_is_empty(self, hub: Hub, labels: dict[str, list[int]]) -> None:
        hub.labels = {"train": [0, 1, 2, 0, 1, 2], **labels}
        assert not load("hf:a/b").has_test
        assert load("hf:a/b", holdout=0.5).test.counts == (1, 1, 1)

    def test_splits_that_number_their_classes_differently_are_matched_by_name(self, hub: Hub) -> None:
        hub.names["test"] = ["cup", "ant"]
        hub.labels["test"] = [0, 0, 1]
        dataset = load("hf:a/b")
        assert (dataset.classes, dataset.test.counts) == (("ant", "bee", "cup"), (1, 0, 2))
        assert torch.equal(dataset.test.images[0], pixels(picture(2)))

    def test_a_data_set_without_splits_is_the_training_split(self, hub: Hub, tmp_path: Path) -> None:
        (tmp_path / "saved").mkdir()
        (tmp_path / "saved" / "state.json").write_text("{}")
        hub.labels, hub.splitless = {"train": [2, 0, 1, 0]}, True
        dataset = load(f"hf:{tmp_path}/saved")
        assert (dataset.train.counts, dataset.has_test) == ((2, 1, 1), False)

    @pytest.mark.parametrize("hidden", [-1, None])
    def test_validation_tests_where_the_labels_of_test_are_withheld(self, hub: Hub, hidden: int | None) -> None:
        hub.labels |= {"test": [hidden, hidden], "validation": [0, 1, 2]}
        assert load("hf:a/b").test.counts == (1, 1, 1)

    def test_images_in_files_of_their_own(self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        picture(5).save(tmp_path / "5.png")
        monkeypatch.setattr(sys.modules[__name__], "encoded", lambda seed: {"bytes": None, "path": f"{tmp_path}/5.png"})
        assert torch.equal(load("hf:a/b").train.images, pixels(picture(5)).expand(4, 3, 6, 6))


class TestMistakes:
    def test_without_datasets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        refused("hf:a/b", "hf:a/b is read by datasets, which is missing: pip install 'ddfast[huggingface]'")

    def test_what_the_library_says_is_passed_on(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(name: str, config: str | None) -> None:
            raise ConnectionError("no hub")

        monkeypatch.setattr(sys.modules["datasets"], "load_dataset", fail)
        refused("hf:a/b", "hf:a/b cannot be loaded: no hub")

    def test_no_train(self, hub: Hub) -> None:
        hub.labels.pop("train")
        refused("hf:a/b", "hf:a/b must have a split train, but has test")

    def test_a_class_of_test_that_train_does_not_have(self, hub: Hub) -> None:
        hub.names["test"] = ["ant", "cow"]
        refused("hf:a/b", "hf:a/b: cow is a class of test that train does not have")

    def test_unlabelled_training_images(self, hub: Hub) -> None:
        hub.labels["train"] = [0, 1, 2, None]
        refused("hf:a/b", "hf:a/b must have labels in all of train")

    def test_a_class_without_training_images(self, hub: Hub) -> None:
        hub.labels["train"] = [0, 2]
        refused("hf:a/b", "hf:a/b: class 1 (bee) has no training image, but every class needs one")

    @pytest.mark.parametrize(
        ("column", "kind", "sentence"),
        [
            ("img", "string", "must have one column of images, but has none"),
            ("note", Image(), "must have one column of images, but has img, note"),
            ("coarse", ClassLabel(["a", "b", "c"]), "must have one column of class labels, but has coarse, fine"),
        ],
    )
    def test_columns_that_leave_no_choice_or_too_much(self, hub: Hub, column: str, kind: object, sentence: str) -> None:
        hub.features[column] = kind
        refused("hf:a/b", sentence)

    def test_no_labels(self, hub: Hub) -> None:
        hub.features |= {"fine": "int64", "coarse": "int64"}
        refused("hf:a/b", "must have one column of class labels, but has none")

    def test_a_broken_image_is_named(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.modules[__name__], "encoded", lambda seed: {"bytes": b"hello", "path": "x.png"})
        refused("hf:a/b", "hf:a/b, train: image 0 is not an image")

    def test_a_missing_image_is_named(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.modules[__name__], "encoded", lambda seed: None)
        refused("hf:a/b", "hf:a/b, train: image 0 is not an image")
