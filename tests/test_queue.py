"""IDM's queue: who comes and goes, who is lent and who is taught, and what is known of each."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine import contents, make_config, make_distiller, make_state, run_here, sgd_step, toy
from torch import Tensor

from ddfast.data import Dataset
from ddfast.distill import queue as queues
from ddfast.distill import run
from ddfast.distill.config import Config
from ddfast.distill.folder import RunFolder
from ddfast.distill.precision import convert
from ddfast.distill.queue import Queue, Teacher
from ddfast.training import build_network

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return toy(classes=4, per_class=80, channels=3)


def config(**keys: Any) -> Config:
    return Config(**{"method": "idm", "width": 4, "depth": 2, "ipc": 1, "queue_steps": 3, **keys})


def teacher(dataset: Dataset, **keys: Any) -> Teacher:
    settings = config(**keys)
    return Teacher(settings, dataset, build_network(settings, dataset).requires_grad_(False))


class TestComing:
    def test_the_first_iteration_sees_four(self, dataset: Dataset) -> None:
        queue = teacher(dataset).admit(None, 0)
        assert len(queue) == 4
        assert len(queue.weights.unique(dim=0)) == 4
        assert not queue.momentum.any()
        assert not queue.seen.any()

    @pytest.mark.parametrize("every", [1, 5, 30])
    def test_then_one_comes_at_every_nth(self, dataset: Dataset, every: int) -> None:
        ours, queue = teacher(dataset, queue_every=every), None
        for iteration in range(61):
            queue = ours.admit(queue, iteration)
            assert len(queue) == min(4 + iteration // every, 100)

    def test_the_oldest_goes_when_there_are_too_many(self, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(queues, "MOST", 5)
        ours, came = teacher(dataset, queue_every=1), []
        queue = ours.admit(None, 0)
        queue.seen += torch.arange(4)
        for iteration in range(1, 4):
            came.append(queue.weights[-1].clone())
            queue = ours.admit(queue, iteration)
        assert len(queue) == 5
        assert queue.seen.tolist() == [2, 3, 0, 0, 0]
        assert torch.equal(queue.weights[1:4], torch.stack(came))

    def test_no_two_networks_begin_alike(self, dataset: Dataset) -> None:
        starts = []
        for seed in (0, 1):
            ours, queue = teacher(dataset, queue_every=1, seed=seed), None
            for iteration in range(10):
                queue = ours.admit(queue, iteration)
            starts.append(queue.weights)
        assert len(torch.cat(starts).unique(dim=0)) == 2 * 13
        assert (
            0.9
            < starts[0].abs().mean() / torch.cat([p.flatten() for p in ours.network.parameters()]).abs().mean()
            < 1.1
        )


class TestLending:
    def test_gives_each_with_its_accuracy_equally_often(self, dataset: Dataset) -> None:
        ours = teacher(dataset)
        queue, network, accuracy = ours.admit(None, 0), build_network(config(), dataset), torch.zeros(()).double()
        queue.seen += torch.tensor([0, 400, 400, 300])
        queue.right += torch.tensor([0, 100, 300, 100])
        parameters = [parameter.data_ptr() for parameter in network.parameters()]
        images, drawn = dataset.normalise(dataset.train.images[:9]), []
        logits = []
        for weights in queue.weights:
            torch.nn.utils.vector_to_parameters(weights, ours.network.parameters())
            logits.append(ours.network(images).detach())
        for iteration in range(1000):
            ours.lend(queue, iteration, network, accuracy)
            drawn.append([0.0, 25.0, 75.0, 100 / 3].index(pytest.approx(float(accuracy))))
            if iteration < 20:
                torch.testing.assert_close(network(images), logits[drawn[-1]])
        assert all(200 < drawn.count(number) < 300 for number in range(4))
        assert [parameter.data_ptr() for parameter in network.parameters()] == parameters


class TestTeaching:
    def taught(self, before: Queue, after: Queue) -> list[int]:
        return [
            number for number in range(len(after)) if not torch.equal(before.weights[number], after.weights[number])
        ]

    def copy(self, queue: Queue) -> Queue:
        return Queue(*(tensor.clone() for tensor in vars(queue).values()))

    def test_is_plain_sgd_on_random_images(self, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
        """... with a momentum that is kept from one time to the next."""
        batches: list[Tensor] = []
        narrow = Dataset.normalise
        monkeypatch.setattr(Dataset, "normalise", lambda self, it: batches.append(it.clone()) or narrow(self, it))
        monkeypatch.setattr(queues, "TRAINED", 1)
        ours = teacher(dataset)
        queue = ours.admit(None, 0)
        plain = {
            number: [queue.weights[number].clone(), torch.zeros_like(queue.weights[number])] for number in range(4)
        }
        seen, right = [0] * 4, [0] * 4
        everything = narrow(dataset, dataset.train.images)
        network = build_network(config(), dataset)
        again = 0
        for iteration in range(8):
            before = self.copy(queue)
            batches.clear()
            ours.teach(queue, iteration)
            (number,) = self.taught(before, queue)
            again += seen[number] > 0
            weights, momentum = plain[number]
            assert len(batches) == 3
            for batch in batches:
                images = narrow(dataset, batch)
                rows = (images.flatten(1)[:, None] == everything.flatten(1)).all(2).int().argmax(1)
                assert len(rows.unique()) == len(rows) == 256, "none of them twice"
                labels = dataset.train.labels[rows]
                torch.nn.utils.vector_to_parameters(weights.clone(), network.parameters())
                logits = network(images)
                gradient = torch.autograd.grad(F.cross_entropy(logits, labels), list(network.parameters()))
                sgd_step([weights], [momentum], [torch.cat([it.flatten() for it in gradient])], 0.01, 5e-4)
                seen[number] += 256
                right[number] += int((logits.argmax(1) == labels).sum())
            torch.testing.assert_close(queue.weights[number], weights, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(queue.momentum[number], momentum, rtol=1e-3, atol=1e-5)
            assert not torch.equal(batches[0], batches[1])
        assert again > 2
        assert queue.seen.tolist() == seen
        assert all(abs(a - b) <= 2 for a, b in zip(queue.right.tolist(), right, strict=True)), "but for rounding"

    def test_is_of_two_networks_and_leaves_the_others(self, dataset: Dataset) -> None:
        ours = teacher(dataset, queue_steps=1)
        queue, pairs = ours.admit(None, 0), []
        for iteration in range(30):
            before = self.copy(queue)
            ours.teach(queue, iteration)
            pairs.append(self.taught(before, queue))
            others = [number for number in range(4) if number not in pairs[-1]]
            for name, tensor in vars(queue).items():
                assert torch.equal(tensor[others], getattr(before, name)[others])
        assert all(len(pair) == 2 for pair in pairs)
        assert len(set(map(tuple, pairs))) == 6, "all pairs come"

    def test_learns(self, dataset: Dataset) -> None:
        ours = teacher(dataset, queue_steps=60, width=8)
        queue = ours.admit(None, 0)
        ours.teach(queue, 0)
        accuracies = [float(queue.accuracy(number)) for number in range(4)]
        assert sorted(accuracies)[:2] == [0, 0]
        assert min(sorted(accuracies)[2:]) > 40

    def test_is_of_float32_whatever_matches(self, dataset: Dataset) -> None:
        settings = config(precision="bf16")
        network = convert(build_network(settings, dataset), "bf16", CPU)
        ours = Teacher(settings, dataset, network)
        queue, accuracy = ours.admit(None, 0), torch.zeros(()).double()
        assert torch.equal(queue.weights, teacher(dataset).admit(None, 0).weights)
        ours.teach(queue, 0)
        assert queue.weights.dtype == torch.float32
        ours.lend(queue, 0, network, accuracy)
        lent = torch.cat([parameter.flatten() for parameter in network.parameters()])
        assert lent.dtype == torch.bfloat16
        assert (lent.sort().values == queue.weights.bfloat16().sort(1).values).all(1).sum() == 1


class TestRun:
    @pytest.fixture(autouse=True)
    def _no_pictures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(run, "save_grid", lambda *_: None)
        monkeypatch.setattr(run, "save_curve", lambda *_, **__: None)

    def test_keeps_its_queue_in_the_checkpoint(self, tmp_path: Path) -> None:
        keys = {"method": "idm", "cross_entropy_weight": 0.1, "queue_every": 2, "queue_steps": 1}
        settings = make_config(tmp_path).replace(**keys)
        run_here(settings, tmp_path / "run")
        held = RunFolder(tmp_path / "run").load_state(CPU)
        run_here(settings.replace(eval_every=2, checkpoint_every=1), tmp_path / "evaluated")
        for state in (held, RunFolder(tmp_path / "evaluated").load_state(CPU)):
            assert len(state.queue) == 3 + 3
            assert state.queue.seen.sum() == 6 * 2 * 36
            assert state.queue.momentum.any()
            for name, tensor in vars(state.queue).items():
                assert torch.equal(tensor, getattr(held.queue, name)), "an evaluation changes nothing"
        names = set(contents(tmp_path / "run"))
        assert names == {"config.toml", "data.json", "metrics.jsonl", "synthetic.safetensors", "checkpoint.safetensors"}

    def test_of_dm_has_none(self, dataset: Dataset) -> None:
        settings = config(method="dm")
        state = make_state(settings, dataset)
        distiller = make_distiller(settings, dataset)
        distiller.iterate(state)
        assert state.queue is distiller.teacher is None
