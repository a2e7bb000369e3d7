"""Small images in the place of one: what they are cut into, what they start from, and that evaluation sees them."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import torch.nn.functional as F
from engine import NO_PICTURES, SMALL, contents, ddfast, make_config, options, run_here, save_npz, toy
from torch import Tensor

from ddfast.distill import run
from ddfast.distill.folder import RunFolder
from ddfast.errors import UserError
from ddfast.evaluate import Protocol, protocol
from ddfast.evaluate.protocol import evaluate_images
from ddfast.partition import assemble, expand

CPU = torch.device("cpu")


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def enlarged(images: Tensor, factor: int) -> Tensor:
    """PyTorch's own."""
    return F.interpolate(images, scale_factor=factor, mode="bilinear", align_corners=False)


class TestExpand:
    def test_quadrants_come_in_blocks_in_their_order(self) -> None:
        """Top left, bottom left, top right, bottom right; of all images, one quadrant after another."""
        images = noise(3, 2, 8, 6)
        top, bottom, left, right = slice(4), slice(4, 8), slice(3), slice(3, 6)
        quadrants = [images[..., top, left], images[..., bottom, left], images[..., top, right], images[..., 4:, right]]
        expected = torch.cat([enlarged(quadrant, 2) for quadrant in quadrants])
        assert expand(images, 2).shape == (12, 2, 8, 6)
        torch.testing.assert_close(expand(images, 2), expected)

    @pytest.mark.parametrize("factor", [2, 3, 4])
    def test_with_its_gradient_is_the_interpolation_of_pieces(self, factor: int) -> None:
        images, upstream = noise(2, 3, 12, 24).requires_grad_(), noise(2 * factor**2, 3, 12, 24)
        pieces = [rows for columns in images.chunk(factor, -1) for rows in columns.chunk(factor, -2)]
        expected = enlarged(torch.cat(pieces), factor)
        result = expand(images, factor)
        torch.testing.assert_close(result, expected)
        gradients = [torch.autograd.grad(it, images, upstream)[0] for it in (result, expected)]
        torch.testing.assert_close(*gradients)

    def test_of_a_single_pixel_is_that_pixel(self) -> None:
        assert expand(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), 2).flatten(1).tolist() == [
            [1.0] * 4,
            [3.0] * 4,
            [2.0] * 4,
            [4.0] * 4,
        ]

    def test_keeps_classes_apart(self) -> None:
        images = noise(3, 5, 1, 8, 8)
        torch.testing.assert_close(expand(images, 2), torch.stack([expand(each, 2) for each in images]))

    def test_of_whole_images_are_they_themselves(self) -> None:
        images = noise(2, 1, 3, 3)
        assert expand(images, 1) is images


class TestAssemble:
    @pytest.mark.parametrize("factor", [1, 2, 3])
    def test_puts_means_where_expand_finds_them(self, factor: int) -> None:
        images = noise(factor**2, 2, 1, 12, 18)
        expected = enlarged(F.avg_pool2d(images.flatten(0, 1), factor), factor)
        torch.testing.assert_close(expand(assemble(images, factor), factor), expected)

    def test_keeps_whole_images_to_the_last_bit(self) -> None:
        images = noise(2, 3, 5, 7).float()
        assert torch.equal(assemble(images[None], 1), images)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "save_grid", lambda *_: None)
    monkeypatch.setattr(run, "save_curve", lambda *_, **__: None)


class TestRun:
    def begun(self, path: Path, **keys: Any) -> Tensor:
        """The images a run starts from."""
        config = make_config(path).replace(iterations=1, image_lr=0.0, **keys)
        run_here(config, path / "run")
        return RunFolder(path / "run").load_state(CPU).images

    def test_starts_from_a_real_image_in_each_quadrant(self, tmp_path: Path) -> None:
        images, dataset = self.begun(tmp_path, partition=2), toy()
        small = F.avg_pool2d(dataset.normalise(dataset.train.images), 2)
        for quadrant in images.split(4, -1)[0].split(4, -2) + images.split(4, -1)[1].split(4, -2):
            same = (quadrant[:, None] - small).abs().flatten(2).amax(2) < 1e-5
            assert (same.sum(1) == 1).all()
            rows = same.int().argmax(1)
            assert dataset.train.labels[rows].tolist() == [0, 0, 1, 1, 2, 2]
            assert len(rows.unique()) == 6

    def test_quadrants_are_drawn_independently(self, tmp_path: Path) -> None:
        columns = self.begun(tmp_path, partition=2).split(4, -1)
        quadrants = [quadrant for column in columns for quadrant in column.split(4, -2)]
        assert not any(torch.equal(a, b) for i, a in enumerate(quadrants) for b in quadrants[:i])

    def test_or_from_whole_real_images(self, tmp_path: Path) -> None:
        whole = self.begun(tmp_path / "whole")
        assert torch.equal(self.begun(tmp_path / "untiled", partition=2, init="untiled"), whole)
        assert not torch.equal(self.begun(tmp_path / "tiled", partition=2), whole)

    def test_says_so_in_the_synthetic_set_and_keeps_its_images_whole(self, tmp_path: Path) -> None:
        images = self.begun(tmp_path, partition=2)
        with safetensors.safe_open(tmp_path / "run" / "synthetic.safetensors", "pt") as file:
            assert file.metadata()["partition"] == "2"
            assert torch.equal(file.get_tensor("images"), images)
        assert images.shape == (6, 1, 8, 8)

    def test_refuses_what_does_not_divide_the_images(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="partition must divide the images' size of 8x8, got 3"):
            self.begun(tmp_path, partition=3)
        assert not (tmp_path / "run").exists()


class TestEvaluation:
    def test_is_of_the_expanded_images(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[tuple[Tensor, Tensor]] = []
        monkeypatch.setattr(protocol, "train_epoch", lambda network, sgd, *data, **how: seen.append(data))
        images, labels = noise(6, 1, 8, 8).float(), torch.tensor([0, 0, 1, 1, 2, 2])
        result = evaluate_images(images, labels, toy(), Protocol(width=4, partition=2, epochs=1, repeats=1), lambda: 0)
        assert result["images"] == 6, "as many as are stored"
        assert torch.equal(seen[0][0], expand(images, 2))
        for k in range(3):
            of_class = [seen[0][0][i] for i in range(24) if seen[0][1][i] == k]
            assert len(of_class) == 8
            torch.testing.assert_close(torch.stack(of_class), expand(images[2 * k : 2 * k + 2], 2))

    def test_of_a_run_is_the_same_by_command(self, tmp_path: Path) -> None:
        save_npz(tmp_path / "data", toy())
        keys = {**SMALL, "ipc": 2, "iterations": 1, "partition": 2}
        words = ["distill", "--data", "./data", "--out", "run", *options(keys)]
        assert ddfast(*words, cwd=tmp_path, setup=NO_PICTURES).code == 0
        before = contents(tmp_path / "run")
        whole = json.loads((tmp_path / "run" / "evaluation.json").read_text())["distilled"]
        assert ddfast("evaluate", "run", cwd=tmp_path).code == 0
        assert contents(tmp_path / "run") == before
        images = RunFolder(tmp_path / "run").load_state(CPU).images
        settings = Protocol(width=8, depth=2, partition=2, epochs=2, repeats=1)
        dataset = toy()
        found = evaluate_images(images, torch.tensor([0, 0, 1, 1, 2, 2]), dataset, settings, lambda: None)
        assert found["runs"] == whole["runs"]
