"""A run from its first image to its last evaluation: checkpoints, resuming, and what is left on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

import ddfast
from ddfast import keyed
from ddfast.data import Dataset
from ddfast.distill.config import Config
from ddfast.distill.folder import RunFolder, State
from ddfast.distill.loop import TERMS, Distiller
from ddfast.distill.plan import make_plan
from ddfast.distill.pool import Pool
from ddfast.distill.precision import check_precision, convert
from ddfast.distill.pretrain import pretrain_with_progress
from ddfast.distill.setup import find_device, labels_of, load_data, pool_config, protocol_of
from ddfast.errors import RunFailed, UserError
from ddfast.evaluate import evaluate_all, evaluate_distilled
from ddfast.report import Board, draw_grid, save_curve, save_grid
from ddfast.report.progress import meter
from ddfast.signals import Stop
from ddfast.training import build_network


class Run:
    """A run folder at work.

    Args:
        config: of a new run, or the one that `path` holds.
        path: the run folder.
        resume: whether `path` holds a run already.
        dataset: the data that `config` names, if they are loaded already.
        baselines: whether random images and the whole training set are evaluated too.

    Raises:
        UserError: before anything is written, if the configuration cannot be carried out.
    """

    def __init__(
        self,
        config: Config,
        path: Path,
        resume: bool,
        console: Console,
        *,
        dataset: Dataset | None = None,
        baselines: bool = True,
    ) -> None:
        self.folder = RunFolder(path)
        self.folder.check(resume)
        self.console, self.baselines = console, baselines
        self.device = find_device(config.device)
        self.config = config = config.replace(device=str(self.device))
        check_precision(config.precision, self.device)
        self.board = Board(path / "tensorboard", wanted=config.tensorboard)
        self.dataset = dataset or load_data(config, self.device, console)
        fewest = min(self.dataset.train.counts)
        if config.init == "real" and config.ipc > fewest:
            raise UserError(
                f"ipc must be at most {fewest}, the images of the smallest class of {config.data}, got {config.ipc}"
            )
        network = build_network(config, self.dataset)
        self.network = convert(network, config.precision, self.device).requires_grad_(False)
        if config.needs_pool and not config.pool:
            build_network(pool_config(config), self.dataset)  # what cannot be built must fail before the folder is made
        self.pool = self._load_pool(Path(config.pool)) if config.needs_pool and config.pool else None
        self.labels = labels_of(config, self.dataset)
        self.state = self.folder.load_state(self.device) if resume else None
        if self.state is None and not bool(self._initial_images().isfinite().all()):
            raise UserError("the normalised images are not finite; check mean and std")

    def __call__(self) -> dict[str, Any]:
        """Distils, evaluates and draws; what evaluation.json holds."""
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        self.folder.open()
        with Stop() as stop:
            self.stop = stop
            self.folder.save_config(self.config)
            self._make_pool()
            state = self._begin()
            try:
                self._distill(state)
                evaluation = self._evaluate(state)
            finally:
                self.board.close()
        self._draw(state, evaluation)
        return evaluation

    def _make_pool(self) -> None:
        config = self.config
        if not config.needs_pool or self.pool is not None:
            return
        path = self.folder.path / "pool"
        settings = pool_config(config)
        pretrain_with_progress(path, self.dataset, config.pool_count, settings, self.console, self.stop)
        self.pool = self._load_pool(path)

    def _load_pool(self, path: Path) -> Pool:
        return Pool.load(path, self.dataset, self.config.precision)

    def _begin(self) -> State:
        """The state to go on from, with the threads and chunks it was computed with."""
        state = self.state
        if state is None:
            images = self._initial_images()
            plan = make_plan(self.config, self.dataset, self.network, self.pool)
            threads = torch.get_num_threads()
            state = State(images, torch.zeros_like(images), 0, threads, plan)
            self._checkpoint(state)
        elif state.threads != torch.get_num_threads():
            self.console.print(f"using {state.threads} threads, as this run did before")
            torch.set_num_threads(state.threads)
        self.folder.cut(state.iteration)
        self.board.begin(state.iteration)
        return state

    def _initial_images(self) -> Tensor:
        """(K·IPC, C, H, W): random real images of every class, or noise."""
        config, dataset = self.config, self.dataset
        classes = torch.arange(dataset.num_classes, device=self.device)
        if config.init == "real":
            scores = keyed.bits(config.seed, 0, classes, "initial images", max(dataset.train.counts))
            return dataset.normalise(dataset.train.images[dataset.train.choose(classes, config.ipc, scores).flatten()])
        shape = (dataset.num_classes * config.ipc, dataset.channels, *dataset.size)
        generator = keyed.generator(config.seed, 0, "initial noise", self.device)
        return torch.randn(shape, generator=generator, device=self.device)

    def _checkpoint(self, state: State) -> None:
        if not bool(state.images.isfinite().all()):
            raise RunFailed(f"the images are not finite after iteration {state.iteration}; {self._kept()}")
        dataset = self.dataset
        about = {"recipe": self.config.recipe or self.dataset.name, "version": ddfast.__version__}
        metadata = {"classes": dataset.classes, "mean": dataset.mean, "std": dataset.std, **about}
        self.board.flush()
        self.folder.save_state(state, self.labels, metadata)
        self._saved = state.iteration

    def _kept(self) -> str:
        return f"the last good checkpoint, of iteration {self._saved}, is kept in {self.folder.path}"

    def _distill(self, state: State) -> None:
        config = self.config
        self._saved = state.iteration
        distiller = Distiller(config, self.dataset, self.network, self.pool, state.plan)
        with meter(self.console, "distil", config.iterations, state.iteration) as bar:
            note = ""
            while state.iteration < config.iterations:
                if self._point_is_due(state):
                    with bar.paused():
                        self._point(state)
                terms = distiller.iterate(state)
                if state.iteration % config.log_every == 0:
                    note = self._log(state, distiller.report(terms))
                bar.step(note)
                if self.stop.requested or state.iteration % config.checkpoint_every == 0 or self._point_is_due(state):
                    self._checkpoint(state)
                self.stop.check()
        if self._saved != state.iteration:
            self._checkpoint(state)

    def _log(self, state: State, terms: dict[str, float]) -> str:
        if not all(map(_finite, terms.values())):
            values = ", ".join(f"{name} {value:g}" for name, value in terms.items())
            raise RunFailed(f"the loss of iteration {state.iteration} is not finite ({values}); {self._kept()}")
        self.folder.log({"iteration": state.iteration, **terms})
        self.board.scalars("metrics", state.iteration, terms)
        return "  ".join(f"{TERMS.get(name, name)} {value:.4g}" for name, value in terms.items())

    def _point_is_due(self, state: State) -> bool:
        """Whether the curve gets a point here that it does not have yet, from before an interruption."""
        if not self.config.eval_every or state.iteration % self.config.eval_every:
            return False
        return all(point["iteration"] != state.iteration for point in self.folder.lines("curve.jsonl"))

    def _point(self, state: State) -> None:
        """A point of the accuracy curve."""
        protocol = protocol_of(self.config)
        result = evaluate_distilled(state.images, self.labels, self.dataset, protocol, self.console, self.stop)
        self._show(state, result)
        self._record(state, result)

    def _show(self, state: State, result: dict[str, Any]) -> None:
        """An evaluation and the images it is of, on the board."""
        if self.config.tensorboard:
            self.board.scalars("accuracy", state.iteration, {key: result[key] for key in ("mean", "std")})
            images = self.dataset.denormalise(state.images)
            picture = draw_grid(images, self.dataset.classes, self.config.ipc)
            self.board.picture("images", state.iteration, np.asarray(picture))
            self.board.flush()

    def _record(self, state: State, result: dict[str, Any]) -> None:
        point = {key: result[key] for key in ("mean", "std", "runs")}
        self.folder.append("curve.jsonl", {"iteration": state.iteration, **point})

    def _evaluate(self, state: State) -> dict[str, Any]:
        """The table of the last images; the best of the curve is named apart, for it was picked on the test images."""
        config = self.config
        if config.eval_every == 0:
            return {}
        evaluation = self.folder.evaluation()
        if evaluation and evaluation["distilled"]["iteration"] == state.iteration:
            return evaluation
        shown = state.images, self.labels, self.dataset, protocol_of(config)
        if self.baselines:
            evaluation = evaluate_all(*shown, config.whole_epochs, self.console, self.stop)
        else:
            evaluation = {"distilled": evaluate_distilled(*shown, self.console, self.stop)}
        evaluation["distilled"]["iteration"] = state.iteration
        self._show(state, evaluation["distilled"])
        if config.eval_every:
            self._record(state, evaluation["distilled"])
            evaluation["best"] = max(self.folder.lines("curve.jsonl"), key=lambda point: point["mean"])
        self.folder.write_json("evaluation.json", evaluation)
        return evaluation

    def _draw(self, state: State, evaluation: dict[str, Any]) -> None:
        path, dataset, config = self.folder.path, self.dataset, self.config
        try:
            images = dataset.denormalise(state.images).cpu()
            save_grid(images, dataset.classes, config.ipc, path / "images.png")
            title = f"{config.recipe or dataset.name}, {config.ipc} images a class"
            metrics, curve = self.folder.lines("metrics.jsonl"), self.folder.lines("curve.jsonl")
            save_curve(path / "curve.png", metrics=metrics, curve=curve, evaluation=evaluation, title=title)
        except UserError as error:
            self.console.print(f"no pictures: {error}")


def _finite(value: float) -> bool:
    return abs(value) < float("inf")
