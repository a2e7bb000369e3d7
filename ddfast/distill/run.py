"""A run from its first image to its last evaluation: checkpoints, resuming, and what is left on disk."""

import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

import ddfast
from ddfast import keyed
from ddfast.data import Dataset
from ddfast.data.fingerprint import Fingerprint
from ddfast.distill.config import Config
from ddfast.distill.folder import RunFolder, State
from ddfast.distill.late import Late
from ddfast.distill.loop import TERMS, Distiller
from ddfast.distill.plan import Plan, make_plan
from ddfast.distill.pool import Pool
from ddfast.distill.precision import check_precision, convert
from ddfast.distill.pretrain import pretrain_with_progress
from ddfast.distill.setup import find_device, labels_of, load_data, pool_config, protocol_of
from ddfast.errors import RankLost, RunFailed, UserError
from ddfast.evaluate import evaluate_all, evaluate_distilled
from ddfast.partition import assemble, check_partition
from ddfast.ranks import ALONE, Ranks
from ddfast.report import Board, draw_grid, save_curve, save_grid
from ddfast.report.progress import meter
from ddfast.signals import Interrupted
from ddfast.training import build_network


class Run:
    """A run folder at work. Of several ranks each has the images of its own classes; the first one keeps what all made.

    Args:
        config: of a new run, or the one that `path` holds.
        path: the run folder.
        resume: whether `path` holds a run already.
        accept_data: whether other data than the run was begun with are taken.
        dataset: the data that `config` names, if they are loaded already.
        baselines: whether random images and the whole training set are evaluated too.
        ranks: the processes that share the classes, all of which make the same Run.

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
        accept_data: bool = False,
        baselines: bool = True,
        ranks: Ranks = ALONE,
    ) -> None:
        self.folder = RunFolder(path, writes=ranks.first)
        self.folder.check(resume)
        self.console, self.baselines, self.ranks = console, baselines, ranks
        self.device = find_device(config.device, ranks)
        self.config = config = config.replace(device=str(self.device) if ranks.size == 1 else self.device.type)
        check_precision(config.precision, self.device)
        self.board = Board(path / "tensorboard", wanted=config.tensorboard and ranks.first)
        self.dataset = dataset or load_data(config, self.device, console, ranks)
        self.fingerprint = Fingerprint.of(self.dataset)
        if resume and (notice := self.folder.check_data(self.dataset.name, self.fingerprint, accept_data)):
            console.print(notice)
        if not self.dataset.has_test:
            self.config = config = self._without_evaluation()
        if ranks.size > self.dataset.num_classes:
            raise UserError(
                f"ranks must be at most {self.dataset.num_classes}, the classes of {config.data}, got {ranks.size}"
            )
        check_partition(config.partition, self.dataset.size)
        fewest = min(self.dataset.train.counts)
        if config.init != "noise" and config.ipc > fewest:
            raise UserError(
                f"ipc must be at most {fewest}, the images of the smallest class of {config.data}, got {config.ipc}"
            )
        network = build_network(config, self.dataset)
        self.network = convert(network, config.precision, self.device).requires_grad_(False)
        if config.needs_pool and not config.pool:
            build_network(pool_config(config), self.dataset)  # what cannot be built must fail before the folder is made
        self.pool = self._load_pool(Path(config.pool)) if config.needs_pool and config.pool else None
        self.labels = labels_of(config, self.dataset)
        self.parts = ranks.parts(self.dataset.num_classes, config.ipc)
        self.state = self.folder.load_state(self.device, self.parts[ranks.rank]) if resume else None
        self._saved = self.state.iteration if self.state else None  # the iteration of the checkpoint
        if self.state is None and not bool(self._initial_images().isfinite().all()):
            raise UserError("the normalised images are not finite; check mean and std")

    def __call__(self) -> dict[str, Any]:
        """Distils, evaluates and draws; what evaluation.json holds."""
        self.ranks.meet()  # before the first one writes, all have looked at what is there
        self.folder.open()
        with self.ranks.stop() as stop:
            self.stop = stop
            try:
                self.folder.save_config(self.config)
                self.folder.save_data(self.fingerprint)
                self._make_pool()
                state = self._begin()
                self._distill(state)
                evaluation = self._evaluate(state)
                images = self.ranks.collected(state.images, self.parts)
            except RankLost as lost:
                raise RankLost(f"{lost}; {self._kept()}; --resume continues it with any number of ranks") from lost
            finally:
                self.board.close()
        if self.ranks.first:
            self._draw(images, evaluation)
        return evaluation

    def _without_evaluation(self) -> Config:
        """The configuration for data that have no test images."""
        if self.config.eval_every:
            self.dataset.check_test()
        if self.config.eval_every is None:
            self.console.print(
                f"{self.dataset.name} has no test images, so the result is not evaluated; "
                "--holdout 0.1 tests on a tenth of the training images"
            )
        return self.config.replace(eval_every=0)

    def _make_pool(self) -> None:
        config = self.config
        if not config.needs_pool or self.pool is not None:
            return
        path = self.folder.path / "pool"
        settings = pool_config(config)
        shared = self.console, self.stop, self.ranks, config.graph
        pretrain_with_progress(path, self.dataset, config.pool_count, settings, *shared)
        self.pool = self._load_pool(path)

    def _load_pool(self, path: Path) -> Pool:
        pool = Pool.load(path, self.dataset, self.config.precision)
        least, most = self.ranks.table([len(pool.networks)]).aminmax()
        if least != most:
            raise UserError(f"{path} must be the same for all ranks, but they find {least:.0f} to {most:.0f} networks")
        return pool

    def _begin(self) -> State:
        """The state to go on from, with the threads and chunks it was computed with by as many ranks."""
        state, ranks = self.state, self.ranks.size
        if state is None:
            images = self._initial_images()
            state = State(images, torch.zeros_like(images), 0, torch.get_num_threads(), self._plan(), ranks=ranks)
            self._checkpoint(state)
        elif state.ranks != ranks:
            self.console.print(f"begun by {state.ranks} and continued by {ranks} ranks: rounding differs")
            state = replace(state, threads=torch.get_num_threads(), plan=self._plan(), ranks=ranks)
        elif state.threads != torch.get_num_threads():
            self.console.print(f"using {state.threads} threads, as this run did before")
            torch.set_num_threads(state.threads)
        self.folder.cut(state.iteration)
        self.board.begin(state.iteration)
        return state

    def _plan(self) -> Plan:
        return make_plan(self.config, self.dataset, self.network, self.pool, self.ranks.size)

    def _initial_images(self) -> Tensor:
        """Of this rank's classes: random real images, each piece another draw made smaller, or noise."""
        config, dataset, rank = self.config, self.dataset, self.ranks.rank
        classes = torch.arange(dataset.num_classes, device=self.device)[self.ranks.parts(dataset.num_classes)[rank]]
        if config.init != "noise":
            factor, pieces = (config.partition if config.init == "real" else 1), []
            for piece in range(factor**2):
                scores = keyed.bits(config.seed, piece, classes, "initial images", max(dataset.train.counts))
                rows = dataset.train.choose(classes, config.ipc, scores).flatten()
                pieces.append(dataset.normalise(dataset.train.images[rows]))
            return assemble(torch.stack(pieces), factor)
        shape = (dataset.num_classes * config.ipc, dataset.channels, *dataset.size)
        generator = keyed.generator(config.seed, 0, "initial noise", self.device)
        return torch.randn(shape, generator=generator, device=self.device)[self.parts[rank]]

    def _checkpoint(self, state: State) -> None:
        """Returns on every rank when it is on disk, so that none ends before."""
        images, momentum = (self.ranks.collected(it, self.parts) for it in (state.images, state.momentum))
        if self.ranks.first:
            self._save(replace(state, images=images, momentum=momentum))
        self.ranks.meet()
        self._saved = state.iteration

    def _save(self, state: State) -> None:
        if not bool(state.images.isfinite().all()):
            raise RunFailed(f"the images are not finite after iteration {state.iteration}; {self._kept()}")
        dataset = self.dataset
        about = {"recipe": self.config.recipe or self.dataset.name, "version": ddfast.__version__}
        pixels = {"mean": dataset.mean, "std": dataset.std, "partition": self.config.partition}
        metadata = {"classes": dataset.classes, **pixels, **about}
        self.board.flush()
        self.folder.save_state(state, self.labels, metadata)

    def _kept(self) -> str:
        if self._saved is None:
            return f"{self.folder.path} has no checkpoint yet"
        return f"the last good checkpoint, of iteration {self._saved}, is kept in {self.folder.path}"

    def _distill(self, state: State) -> None:
        config = self.config
        distiller = Distiller(config, self.dataset, self.network, self.pool, state.plan, self.ranks)
        begun = time.monotonic() - state.seconds
        with meter(self.console, "distil", config.iterations, state.iteration) as bar:
            note, late = "", Late(self.device)
            while state.iteration < config.iterations:
                if self._point_is_due(state):
                    with bar.paused():
                        self._point(state)
                    begun = time.monotonic() - state.seconds
                terms = distiller.iterate(state)
                if state.iteration % config.log_every == 0:
                    late.put(state.iteration, terms)
                # A signal reaches ranks in different iterations, and all must stop after the same one.
                signum, rows = self._exchange(late.due(state.iteration))
                note = self._log(distiller, rows) or note
                bar.step(note)
                ended = state.iteration == config.iterations
                if signum or ended or state.iteration % config.checkpoint_every == 0 or self._point_is_due(state):
                    # A checkpoint is not ahead of the metrics, nor of a loss that is not finite.
                    note = self._log(distiller, self._exchange(late.rest())[1]) or note
                    if self.device.type == "cuda":
                        torch.cuda.synchronize(self.device)  # what is only queued has taken no seconds yet
                    state.seconds = time.monotonic() - begun
                    self._checkpoint(state)
                if signum:
                    raise Interrupted(signum)

    def _exchange(self, rows: list[tuple[int, list[float]]]) -> tuple[int, list[tuple[int, Tensor]]]:
        """The signal that any rank got, or 0; and the terms of iterations, added up over ranks."""
        told = self.ranks.table([self.stop.signum, *itertools.chain(*(terms for _, terms in rows))])
        sums = told[:, 1:].sum(0).view(len(rows), len(TERMS))
        return int(told[:, 0].max()), [(iteration, terms) for (iteration, _), terms in zip(rows, sums, strict=True)]

    def _log(self, distiller: Distiller, rows: list[tuple[int, Tensor]]) -> str:
        """A line of metrics for every row; the last one for the meter, "" without rows."""
        note = ""
        for iteration, row in rows:
            terms = distiller.report(row)
            if not all(map(_finite, terms.values())):
                values = ", ".join(f"{name} {value:g}" for name, value in terms.items())
                raise RunFailed(f"the loss of iteration {iteration} is not finite ({values}); {self._kept()}")
            self.folder.log({"iteration": iteration, **terms})
            self.board.scalars("metrics", iteration, terms)
            note = "  ".join(f"{TERMS.get(name, name)} {value:.4g}" for name, value in terms.items())
        return note

    def _point_is_due(self, state: State) -> bool:
        """Whether the curve gets a point here that it does not have yet, from before an interruption."""
        if not self.config.eval_every or state.iteration % self.config.eval_every:
            return False
        points = self.ranks.told(lambda: self.folder.lines("curve.jsonl"))
        return all(point["iteration"] != state.iteration for point in points)

    def _point(self, state: State) -> None:
        """A point of the accuracy curve."""
        images = self.ranks.joined(state.images, self.parts)
        shown = images, self.labels, self.dataset, protocol_of(self.config)
        result = evaluate_distilled(*shown, self.console, self.stop, self.ranks)
        self._show(state, images, result)
        self._record(state, result)

    def _show(self, state: State, images: Tensor, result: dict[str, Any]) -> None:
        """An evaluation and the images it is of, on the board."""
        if self.config.tensorboard and self.ranks.first:
            self.board.scalars("accuracy", state.iteration, {key: result[key] for key in ("mean", "std")})
            picture = draw_grid(self.dataset.denormalise(images), self.dataset.classes, self.config.ipc)
            self.board.picture("images", state.iteration, np.asarray(picture))
            self.board.flush()

    def _record(self, state: State, result: dict[str, Any]) -> None:
        point = {key: result[key] for key in ("mean", "std", "runs")}
        self.folder.append("curve.jsonl", {**state.course(), **point})

    def _evaluate(self, state: State) -> dict[str, Any]:
        """The table of the last images; the best of the curve is named apart, for it was picked on the test images."""
        config = self.config
        if config.eval_every == 0:
            return {}
        evaluation = self.ranks.told(self.folder.evaluation)
        if evaluation and evaluation["distilled"]["iteration"] == state.iteration:
            return evaluation
        images = self.ranks.joined(state.images, self.parts)
        shown, shared = (images, self.labels, self.dataset, protocol_of(config)), (self.console, self.stop, self.ranks)
        if self.baselines:
            evaluation = evaluate_all(*shown, config.whole_epochs, *shared)
        else:
            evaluation = {"distilled": evaluate_distilled(*shown, *shared)}
        evaluation["distilled"] |= state.course()
        self._show(state, images, evaluation["distilled"])
        self._record(state, evaluation["distilled"])
        if config.eval_every:
            points = self.ranks.told(lambda: self.folder.lines("curve.jsonl"))
            evaluation["best"] = max(points, key=lambda point: point["mean"])
        self.folder.write_json("evaluation.json", evaluation)
        return evaluation

    def _draw(self, images: Tensor, evaluation: dict[str, Any]) -> None:
        path, dataset, config = self.folder.path, self.dataset, self.config
        try:
            save_grid(dataset.denormalise(images).cpu(), dataset.classes, config.ipc, path / "images.png")
            title = f"{config.recipe or dataset.name}, {config.ipc} images a class"
            metrics, curve = self.folder.lines("metrics.jsonl"), self.folder.lines("curve.jsonl")
            save_curve(path / "curve.png", metrics=metrics, curve=curve, evaluation=evaluation, title=title)
        except UserError as error:
            self.console.print(f"no pictures: {error}")


def _finite(value: float) -> bool:
    return abs(value) < float("inf")
