"""Images that ddfast did not make: what is read, how it is normalised, and what is refused in one sentence."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from engine import NO_PICTURES, SMALL, contents, ddfast, options, save_npz, toy
from PIL import Image
from rich.console import Console
from torch import Tensor

from ddfast.data import Dataset
from ddfast.distill.subject import find_subject
from ddfast.errors import UserError
from ddfast.evaluate import read_images

LABELS = torch.tensor([0, 2, 1, 2, 0, 2])  # of any order, and not equally many
QUICK = ["--epochs", "1", "--repeats", "1", "--width", "4", "--device", "cpu"]


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def dataset(request: pytest.FixtureRequest) -> Dataset:
    return toy(channels=request.param)


def pixels(dataset: Dataset) -> Tensor:
    """uint8 (6, C, 8, 8)."""
    shape = (len(LABELS), dataset.channels, *dataset.size)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def normalised(dataset: Dataset) -> Tensor:
    return dataset.normalise(pixels(dataset))


def save(path: Path, images: Any, labels: Any = LABELS, **others: Any) -> Path:
    """Whatever `path` ends in."""
    content = {"images": images, "labels": labels, **others}
    if path.suffix == ".npz":
        np.savez(path, **{name: np.asarray(value) for name, value in content.items()})
    elif path.suffix == ".safetensors":
        tensors = {name: it.contiguous() for name, it in content.items() if isinstance(it, Tensor)}
        words = {name: json.dumps(it) for name, it in content.items() if not isinstance(it, Tensor)}
        safetensors.torch.save_file(tensors, path, words)
    else:
        torch.save(content, path)
    return path


def read(path: Path, dataset: Dataset) -> Tensor:
    """The images; their labels are what they should be."""
    found = read_images(path, dataset)
    assert found.partition == 1
    assert (found.images.dtype, found.labels.dtype) == (torch.float32, torch.int64)
    assert torch.equal(found.labels, LABELS)
    return found.images


SUFFIXES = [".npz", ".safetensors", ".pt", ".pth"]


@pytest.mark.parametrize("suffix", SUFFIXES)
class TestForms:
    def test_suffixes_may_be_capital(self, dataset: Dataset, tmp_path: Path, suffix: str) -> None:
        path = save(tmp_path / f"a{suffix}", pixels(dataset))
        assert torch.equal(read(path.rename(tmp_path / f"A{suffix.upper()}"), dataset), normalised(dataset))

    def test_uint8_are_pixels(self, dataset: Dataset, tmp_path: Path, suffix: str) -> None:
        path = save(tmp_path / f"a{suffix}", pixels(dataset), mean=[0.9] * dataset.channels)
        assert torch.equal(read(path, dataset), normalised(dataset))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
    def test_floats_are_normalised(self, dataset: Dataset, tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
        images = normalised(dataset).to(dtype)
        assert torch.equal(read(save(tmp_path / f"a{suffix}", images), dataset), images.float())

    def test_their_own_mean_and_std_are_heeded(self, dataset: Dataset, tmp_path: Path, suffix: str) -> None:
        mean, std = [0.4, 0.5, 0.6][: dataset.channels], [0.1, 0.2, 0.3][: dataset.channels]
        images = (pixels(dataset) / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        got = read(save(tmp_path / f"a{suffix}", images, mean=mean, std=std), dataset)
        torch.testing.assert_close(got, normalised(dataset), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("top", [1, 255])
    @pytest.mark.parametrize("stray", [0.0, -1e-6, 1.02])
    def test_floats_may_be_pixels(self, dataset: Dataset, tmp_path: Path, suffix: str, top: int, stray: float) -> None:
        """One value beyond, which denormalising and resizing leave, does not make them normalised."""
        images = pixels(dataset) / 255
        images[0, 0, 0, 0] = stray
        found = read_images(save(tmp_path / f"a{suffix}", images * top), dataset)
        assert found.taken_as.endswith(f"images are taken as pixels from 0 to {top}")
        expected = (images - torch.tensor(dataset.mean)[:, None, None]) / torch.tensor(dataset.std)[:, None, None]
        torch.testing.assert_close(found.images, expected, rtol=1e-4, atol=1e-4)

    def test_what_the_values_leave_open_is_asked_for(self, dataset: Dataset, tmp_path: Path, suffix: str) -> None:
        images = pixels(dataset) / 127.5 - 1
        path = save(tmp_path / f"a{suffix}", images)
        with pytest.raises(UserError, match="may be pixels or normalised: give --pixels or --normalised"):
            read_images(path, dataset)
        assert torch.equal(read_images(path, dataset, normalised=True).images, images)
        expected = (images - torch.tensor(dataset.mean)[:, None, None]) / torch.tensor(dataset.std)[:, None, None]
        torch.testing.assert_close(read_images(path, dataset, normalised=False).images, expected)

    def test_what_contradicts_the_file_is_refused(self, dataset: Dataset, tmp_path: Path, suffix: str) -> None:
        with pytest.raises(UserError, match="uint8 pixels, which --normalised cannot be"):
            read_images(save(tmp_path / f"a{suffix}", pixels(dataset)), dataset, normalised=True)
        path = save(tmp_path / f"b{suffix}", normalised(dataset), mean=0.5, std=0.5)
        with pytest.raises(UserError, match="holds the mean and std that its images are normalised by; --pixels"):
            read_images(path, dataset, normalised=False)

    def test_distilled_images_may_go_far_beyond_pixels(self, dataset: Dataset, tmp_path: Path, suffix: str) -> None:
        images = 50 * normalised(dataset)
        assert torch.equal(read(save(tmp_path / f"a{suffix}", images), dataset), images)

    def test_the_same_statistics_change_no_bit(self, dataset: Dataset, tmp_path: Path, suffix: str) -> None:
        path = save(tmp_path / f"a{suffix}", normalised(dataset), mean=list(dataset.mean), std=list(dataset.std))
        assert torch.equal(read(path, dataset), normalised(dataset))

    def test_channels_may_come_last_or_be_left_out(self, dataset: Dataset, tmp_path: Path, suffix: str) -> None:
        last = pixels(dataset).permute(0, 2, 3, 1)
        for images in (last, *([last[..., 0]] if dataset.channels == 1 else [])):
            assert torch.equal(read(save(tmp_path / f"a{suffix}", images), dataset), normalised(dataset))

    def test_what_else_a_file_holds_is_left_alone(self, dataset: Dataset, tmp_path: Path, suffix: str) -> None:
        others = {"names": ["a", "b"], "classes": 3 if suffix != ".npz" else ["words", "too"], "lr": 0.1}
        path = save(tmp_path / f"a{suffix}", normalised(dataset).requires_grad_(suffix == ".pt"), **others)
        assert not read(path, dataset).requires_grad

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
    def test_labels_of_any_integers(self, dataset: Dataset, tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
        read(save(tmp_path / f"a{suffix}", pixels(dataset), LABELS.to(dtype)), dataset)


class TestPairs:
    """The layouts of .pt files without names."""

    def test_a_pair(self, dataset: Dataset, tmp_path: Path) -> None:
        torch.save([normalised(dataset), LABELS], tmp_path / "pair.pt")
        assert torch.equal(read(tmp_path / "pair.pt", dataset), normalised(dataset))

    def test_a_learning_rate_may_follow(self, dataset: Dataset, tmp_path: Path) -> None:
        torch.save([normalised(dataset), LABELS, 0.01], tmp_path / "three.pt")
        assert torch.equal(read(tmp_path / "three.pt", dataset), normalised(dataset))

    def test_arrays_of_numpy_stand_for_tensors(self, dataset: Dataset, tmp_path: Path) -> None:
        torch.save({"images": normalised(dataset).numpy(), "labels": LABELS.numpy()}, tmp_path / "arrays.pt")
        assert torch.equal(read(tmp_path / "arrays.pt", dataset), normalised(dataset))

    @pytest.mark.parametrize("numpy", ["numpy._core", "numpy.core"])
    def test_what_the_script_of_dm_saves(self, dataset: Dataset, tmp_path: Path, numpy: str) -> None:
        """Five experiments with their accuracies, which are NumPy's numbers, as NumPy 2 and 1 name them."""
        data = [[normalised(dataset) + number, LABELS] for number in range(5)]
        torch.save({"data": data, "accs_all_exps": {"ConvNet": [np.float64(0.5)] * 5}}, tmp_path / "new.pt")
        with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(tmp_path / "res.pt", "w") as old:
            for name in new.namelist():
                content = new.read(name)
                if name.endswith("data.pkl"):
                    assert b"cnumpy._core.multiarray\nscalar" in content
                    content = content.replace(b"cnumpy._core.multiarray\n", f"c{numpy}.multiarray\n".encode())
                old.writestr(name, content)
        assert torch.equal(read(tmp_path / "res.pt", dataset), normalised(dataset))

    def test_code_is_not_run(self, dataset: Dataset, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
                return os.mkdir, (str(tmp_path / "was here"),)

        torch.save({"images": pixels(dataset), "labels": LABELS, "more": Evil()}, tmp_path / "evil.pt")
        with pytest.raises(
            UserError,
            match=r"evil\.pt is damaged, or holds Python objects, which are not read because they could run code",
        ):
            read_images(tmp_path / "evil.pt", dataset)
        np.savez(tmp_path / "evil.npz", images=np.array([Evil()], dtype=object), labels=LABELS)
        with pytest.raises(UserError, match=r"evil\.npz is damaged, or"):
            read_images(tmp_path / "evil.npz", dataset)
        assert not (tmp_path / "was here").exists()


class TestLabels:
    def test_soft_labels_are_probabilities_or_logits(self, dataset: Dataset, tmp_path: Path) -> None:
        logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) + 4 * torch.eye(3)[LABELS]
        for labels, kind in ((logits, "logits"), (logits.softmax(1), "probabilities")):
            found = read_images(save(tmp_path / "a.npz", pixels(dataset), labels), dataset)
            torch.testing.assert_close(found.labels, logits.softmax(1))
            assert found.taken_as.endswith(f"labels as soft ({kind}), trained on by their cross-entropy")
        one_hot = torch.eye(3, dtype=torch.int64)[LABELS]
        found = read_images(save(tmp_path / "b.pt", pixels(dataset), one_hot), dataset)
        assert torch.equal(found.labels.argmax(1), LABELS)

    def test_may_be_a_column(self, dataset: Dataset, tmp_path: Path) -> None:
        read(save(tmp_path / "a.pt", pixels(dataset), LABELS[:, None]), dataset)

    @pytest.mark.parametrize("suffix", [".npy", ".pt", ".npz", ".safetensors"])
    def test_may_lie_in_a_file_of_their_own(self, dataset: Dataset, tmp_path: Path, suffix: str) -> None:
        torch.save(normalised(dataset), tmp_path / "images.pt")
        with pytest.raises(UserError, match=r"images\.pt: no labels, it holds images; --labels names a file of them"):
            read_images(tmp_path / "images.pt", dataset)
        path = tmp_path / f"labels{suffix}"
        if suffix == ".npy":
            np.save(path, LABELS.numpy())
        elif suffix == ".npz":
            np.savez(path, labels=LABELS.numpy())
        elif suffix == ".safetensors":
            safetensors.torch.save_file({"labels": LABELS}, path)
        else:
            torch.save(LABELS, path)
        found = read_images(tmp_path / "images.pt", dataset, labels=path)
        assert torch.equal(found.labels, LABELS)
        assert torch.equal(found.images, normalised(dataset))


class TestShards:
    def test_are_joined_in_the_order_of_their_names(self, dataset: Dataset, tmp_path: Path) -> None:
        for number, rows in enumerate((slice(0, 4), slice(4, 6))):
            save(tmp_path / f"{number}.safetensors", normalised(dataset)[rows].contiguous(), LABELS[rows].contiguous())
        assert torch.equal(read(tmp_path, dataset), normalised(dataset))
        save(tmp_path / "2.safetensors", pixels(dataset))
        with pytest.raises(UserError, match=r"2\.safetensors: images are .*uint8 each, but .*float32 in 0"):
            read_images(tmp_path, dataset)
        torch.save(normalised(dataset), tmp_path / "2.safetensors.pt")
        (tmp_path / "2.safetensors").unlink()
        with pytest.raises(UserError, match=r"2\.safetensors\.pt: no labels, which every file"):
            read_images(tmp_path, dataset)


class TestFolders:
    def draw(self, folder: Path, dataset: Dataset, names: list[str], suffix: str = ".png") -> None:
        for number, (image, label) in enumerate(zip(pixels(dataset), LABELS.tolist(), strict=True)):
            path = folder / names[label] / f"{number}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(path)

    @pytest.mark.parametrize("names", [["c0", "c1", "c2"], ["0", "1", "2"]], ids=str)
    def test_of_classes_by_name_or_number(self, dataset: Dataset, tmp_path: Path, names: list[str]) -> None:
        self.draw(tmp_path, dataset, names)
        (tmp_path / ".hidden").mkdir()
        for name in (".DS_Store", "Thumbs.db", "notes.txt"):
            (tmp_path / names[0] / name).write_bytes(b"")
        found = read_images(tmp_path, dataset)
        order = LABELS.argsort(stable=True)
        assert torch.equal(found.labels, LABELS[order])
        assert torch.equal(found.images, normalised(dataset)[order])

    def test_images_are_found_and_decoded_as_those_of_data(self, dataset: Dataset, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was held so that the picture must be turned clockwise
        for number, name in enumerate(("c0", "c1", "c2")):
            path = tmp_path / name / "more" / "0.png"
            path.parent.mkdir(parents=True)
            upright = pixels(dataset)[number].permute(1, 2, 0).squeeze(2).numpy()
            Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(path, exif=exif)
        assert torch.equal(read_images(tmp_path, dataset).images, normalised(dataset)[:3])
        Image.fromarray(np.full((8, 8), 300, np.uint16)).save(tmp_path / "c1" / "more" / "0.png")
        with pytest.raises(UserError, match=r"more/0\.png has more than 8 bits a channel, which would be lost"):
            read_images(tmp_path, dataset)

    def test_grey_images_may_be_stored_as_colours(self, tmp_path: Path) -> None:
        for number, name in enumerate(("c0", "c1", "c2")):
            (tmp_path / name).mkdir()
            Image.fromarray(pixels(toy())[number, 0].numpy()).convert("RGB").save(tmp_path / name / "0.png")
        assert torch.equal(read_images(tmp_path, toy()).images, normalised(toy())[:3])

    def test_mistakes(self, dataset: Dataset, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"holds no run and no images: expected a run folder, or an \.npz"):
            read_images(tmp_path, dataset)
        self.draw(tmp_path, dataset, ["c0", "c1", "cat"])
        with pytest.raises(UserError, match="cat is not called by the name or number of a class of toy"):
            read_images(tmp_path, dataset)
        (tmp_path / "cat").rename(tmp_path / "c2")
        (tmp_path / "c2" / "notes.png").write_text("hello")
        with pytest.raises(UserError, match=r"c2/notes\.png is not an image"):
            read_images(tmp_path, dataset)
        (tmp_path / "c2" / "notes.png").unlink()
        Image.new("RGB", (9, 8)).save(tmp_path / "c2" / "wide.png")
        with pytest.raises(UserError, match=r"wide\.png has 9x8 pixels, the images of toy 8x8"):
            read_images(tmp_path, dataset)


ONE = torch.zeros(1)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "other sizes": ({"images": ONE.expand(6, 1, 9, 8)}, r"must be \(N, 1, 8, 8\) or .* of toy, not \(6, 1, 9, 8\)"),
    "other channels": ({"images": ONE.expand(6, 3, 8, 8)}, r"images must be .* not \(6, 3, 8, 8\)"),
    "one image": ({"images": ONE.expand(1, 8, 8)[0]}, r"images must be .* not \(8, 8\)"),
    "a number": ({"images": ONE[0]}, r"images must be .* not \(\)"),
    "no image": ({"images": ONE.expand(0, 1, 8, 8), "labels": LABELS[:0]}, r"class 0 \(c0\) has no image"),
    "integers": (
        {"images": ONE.expand(6, 1, 8, 8).long()},
        "must be uint8 pixels or floating point .* not torch.int64",
    ),
    "not finite": ({"images": torch.full((6, 1, 8, 8), torch.nan)}, "images must be finite"),
    "one label less": (
        {"labels": LABELS[1:]},
        r"labels must be \(6,\) integers, one for each image, or .*, not \(5,\)",
    ),
    "soft labels of other classes": (
        {"labels": torch.rand(6, 4)},
        r"labels must be \(6,\) integers.* or soft labels \(6, 3\), not \(6, 4\) of torch.float32",
    ),
    "soft labels not finite": ({"labels": torch.full((6, 3), torch.nan)}, "soft labels must be finite"),
    "labels that are none": ({"labels": LABELS.float()}, "integers, one for each image, or .* not .* of torch.float32"),
    "a label beyond": ({"labels": LABELS + 1}, "labels must be 0 to 2, the classes of toy, got 3"),
    "a negative label": ({"labels": LABELS - 1}, "labels must be 0 to 2, the classes of toy, got -1"),
    "a class less": ({"labels": LABELS.clamp(max=1)}, r"class 2 \(c2\) has no image, but each of toy needs one"),
    "other classes": ({"classes": ["a", "b"]}, "classes must be those of toy, c0, c1, c2, but are a, b"),
    "renamed classes": (
        {"classes": ["c0", "c2", "c1"]},
        "classes must be those of toy, c0, c1, c2, but are c0, c2, c1",
    ),
    "mean alone": ({"mean": [0.5]}, "mean and std must be there together"),
    "two means": ({"mean": [0.5, 0.5], "std": [1.0]}, "mean must be a number, or one for each of 1 channels"),
    "words": ({"mean": "a", "std": [1.0]}, "mean must be a number, or one for each of 1 channels"),
    "no deviation": ({"mean": [0.5], "std": [0.0]}, r"std must be finite and positive, got \[0.0\]"),
}


class TestRefusals:
    @pytest.mark.parametrize("mistake", REFUSED)
    def test_of_what_does_not_fit(self, tmp_path: Path, mistake: str) -> None:
        changed, said = REFUSED[mistake]
        content = {"images": normalised(toy()), "labels": LABELS, **changed}
        with pytest.raises(UserError, match=f"a\\.safetensors: .*{said}"):
            read_images(save(tmp_path / "a.safetensors", **content), toy())

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_of_broken_files(self, tmp_path: Path, suffix: str) -> None:
        path = save(tmp_path / f"a{suffix}", pixels(toy()))
        content = path.read_bytes()
        for broken in (b"", b"hello", content[: len(content) // 2]):
            path.write_bytes(broken)
            with pytest.raises(UserError, match=f"a\\{suffix} is damaged, or "):
                read_images(path, toy())

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_of_files_without_images(self, tmp_path: Path, suffix: str) -> None:
        path = save(tmp_path / f"a{suffix}", pixels(toy()))
        wrong = {"pictures": pixels(toy()), "labels": LABELS}
        if suffix == ".npz":
            np.savez(path, **{name: it.numpy() for name, it in wrong.items()})
        elif suffix == ".safetensors":
            safetensors.torch.save_file(wrong, path)
        else:
            torch.save(wrong, path)
        with pytest.raises(UserError, match=f"a\\{suffix}: no images, it holds (pictures, labels|labels, pictures)"):
            read_images(path, toy())

    def test_of_what_cannot_be_opened(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"a\.npz cannot be read: No such file or directory"):
            read_images(tmp_path / "a.npz", toy())

    def test_of_other_files(self, tmp_path: Path) -> None:
        torch.save("words", tmp_path / "a.pt")
        with pytest.raises(UserError, match=r"a\.pt is damaged, or does not hold"):
            read_images(tmp_path / "a.pt", toy())
        with pytest.raises(UserError, match=r"a\.jpg is none of what can be evaluated: a run folder, an \.npz"):
            read_images(tmp_path / "a.jpg", toy())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a run, and images of two kinds."""
    folder = tmp_path_factory.mktemp("foreign")
    save_npz(folder / "data", toy())
    words = ["distill", "--data", "./data", "--out", "run", *options({**SMALL, "ipc": 2, "iterations": 1})]
    assert ddfast(*words, cwd=folder, setup=NO_PICTURES).code == 0
    save(folder / "mine.npz", pixels(toy()))
    save(folder / "many.pt", torch.randn(39, 1, 8, 8), torch.arange(39) % 3)
    return folder


class TestCommand:
    def test_writes_beside_the_images_and_nothing_else(self, folder: Path) -> None:
        before = contents(folder)
        outcome = ddfast("evaluate", "mine.npz", "--data", "./data", *QUICK, cwd=folder)
        assert (outcome.code, outcome.err) == (0, "")
        after = contents(folder)
        assert after.keys() - before.keys() == {"mine-evaluation.json"}
        assert all(after[name] == before[name] for name in before)
        found = json.loads((folder / "mine-evaluation.json").read_text())
        assert list(found) == ["random", "distilled"]
        assert (found["random"]["images"], found["distilled"]["images"]) == (6, 6)
        assert found["distilled"]["source"] == str((folder / "mine.npz").resolve())
        assert ddfast("evaluate", "mine.npz", "--data", "./data", *QUICK, cwd=folder).code == 0, "it may be repeated"
        assert contents(folder) == after

    def test_takes_several_networks_and_a_folder(self, folder: Path) -> None:
        words = ["--networks", "alexnet,convnet", "--out", "results/mine"]
        outcome = ddfast("evaluate", "many.pt", "--data", "./data", *QUICK, *words, cwd=folder)
        assert (outcome.code, outcome.err) == (0, "")
        results = {path.name: json.loads(path.read_text()) for path in (folder / "results" / "mine").iterdir()}
        assert set(results) == {"many-evaluation-alexnet.json", "many-evaluation-convnet.json"}
        table = [line.split() for line in outcome.out.splitlines()[-3:]]
        assert table[0] == ["network", "distilled", "images"], "a class has 12 images to draw 13 from"
        for row in table[1:]:
            entry = results[f"many-evaluation-{row[0]}.json"]["distilled"]
            assert row[1:] == [f"{entry['mean']:.1f}", "±", "0.0", "%"]
            assert (entry["network"], entry["images"]) == (row[0], 39)

    @pytest.mark.parametrize("partition", [1, 2])
    def test_a_run_s_own_file_is_evaluated_as_the_run_is(self, folder: Path, partition: int) -> None:
        run, keys = f"run {partition}", options({**SMALL, "data": "./data"})
        more = options({"ipc": 2, "iterations": 1, "partition": partition, "out": run})
        assert ddfast("distill", *keys, *more, cwd=folder, setup=NO_PICTURES).code == 0
        outcome = ddfast("evaluate", f"{run}/synthetic.safetensors", *keys, "--out", f"again {partition}", cwd=folder)
        assert (outcome.code, outcome.err) == (0, "")
        found = json.loads((folder / f"again {partition}" / "synthetic-evaluation.json").read_text())
        expected = json.loads((folder / run / "evaluation.json").read_text())
        for row in ("random", "distilled"):
            assert all(found[row][key] == expected[row][key] for key in ("runs", "images", "per_class"))
            assert found[row]["images"] == 6

    def test_soft_labels_are_named_in_the_result(self, folder: Path) -> None:
        save(folder / "soft.npz", pixels(toy()), torch.eye(3)[LABELS] * 0.9 + 1 / 30)
        outcome = ddfast("evaluate", "soft.npz", "--data", "./data", *QUICK, cwd=folder)
        assert (outcome.code, outcome.err) == (0, "")
        assert "soft.npz: images are taken as pixels from 0 to 255, labels as soft (probabilities)" in outcome.out
        assert json.loads((folder / "soft-evaluation.json").read_text())["distilled"]["labels"] == "soft"

    def test_labels_and_normalised_are_not_of_a_run(self, folder: Path) -> None:
        for words, name in ((["--labels", "x.npy"], "labels"), (["--pixels"], "normalised")):
            said = ddfast("evaluate", "run", *words, cwd=folder).mistake(2)
            assert said.startswith(f"{name} must not be given with a run")

    def test_a_partition_may_be_said(self, folder: Path, tmp_path: Path) -> None:
        two = save(tmp_path / "two.safetensors", normalised(toy()), partition=2)
        quiet, keys = Console(quiet=True), {"data": str(folder / "data"), "device": "cpu"}
        for path, said, expected in ((folder / "mine.npz", {}, 1), (two, {}, 2), (two, {"partition": 4}, 4)):
            assert find_subject(path, {**keys, **said}, None, quiet).config.partition == expected
        with pytest.raises(UserError, match="partition must divide the images' size of 8x8, got 3"):
            find_subject(two, {**keys, "partition": 3}, None, quiet)

    def test_needs_data(self, folder: Path) -> None:
        said = ddfast("evaluate", "mine.npz", cwd=folder).mistake(2)
        assert said == "mine.npz holds no run, and for images --data must name the data set that tests them"

    @pytest.mark.parametrize("content", ["{}", "hello", '{"distilled": {"source": "/another"}}', "[]"])
    def test_writes_over_nothing_else(self, folder: Path, content: str) -> None:
        path = folder / "there" / "many-evaluation.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        said = ddfast("evaluate", "many.pt", "--data", "./data", *QUICK, "--out", "there", cwd=folder).mistake(2)
        assert said.startswith("there/many-evaluation.json is there and no evaluation of the same images")
        assert path.read_text() == content

    def test_says_what_is_wrong_before_it_makes_a_folder(self, folder: Path) -> None:
        for words in (["--networks", "alexnett"], ["--depth", "9"], ["--repeats", "0"], ["--augmentation", "zoom"]):
            ddfast("evaluate", "many.pt", "--data", "./data", *QUICK, *words, "--out", "new", cwd=folder).mistake(2)
            assert not (folder / "new").exists()
        said = ddfast("evaluate", "many.pt", "--data", "./data", *QUICK, "--out", "mine.npz", cwd=folder).mistake(2)
        assert said == "mine.npz cannot be written: File exists"
