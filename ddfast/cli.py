"""The command line: `ddfast distill | sweep | pretrain | evaluate | report | recipes | info`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ddfast.data import absolute_place
from ddfast.distill.config import Config, defaults
from ddfast.distill.folder import RunFolder
from ddfast.distill.pretrain import PoolConfig, pretrain_with_progress, trained
from ddfast.distill.run import Run
from ddfast.distill.setup import find_device, load_data
from ddfast.distill.subject import find_subject
from ddfast.distill.sweep import FILE, Sweep, load_results
from ddfast.endings import ending
from ddfast.errors import RankLost, RunFailed, UserError
from ddfast.info import info_lines
from ddfast.memory import keep_freed_memory
from ddfast.options import (
    given_keys,
    parse_grid,
    with_config_options,
    with_data_options,
    with_evaluation_options,
)
from ddfast.ranks import ALONE, Ranks
from ddfast.recipes import from_recipe, printed, recipes
from ddfast.report import (
    class_table,
    evaluation_table,
    networks_table,
    options_line,
    pool_table,
    ranked,
    sweep_table,
)

app = typer.Typer(
    help="Fast dataset distillation.", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)
console = Console(highlight=False, markup=False, emoji=False)  # classes and files may have any name
ACCEPT_DATA = "take data that differ from those the run was begun with"
SHARED = ("distill", "pretrain", "evaluate")  # the commands whose work several ranks share


@app.callback(invoke_without_command=True)
def ddfast(context: typer.Context) -> None:
    command = context.invoked_subcommand
    if context.obj.size > 1 and command not in SHARED:
        raise UserError(f"torchrun is for {', '.join(SHARED)}; {command or 'ddfast'} takes a single process")
    if command is None:
        console.print(Text(context.get_help()), soft_wrap=True)


def main() -> None:
    """Runs a command; whatever goes wrong for the user is one line on stderr and an exit code."""
    keep_freed_memory()
    ranks = ALONE
    try:
        ranks = Ranks.join()
        console.quiet = not ranks.first
        code = app(standalone_mode=False, obj=ranks) or 0
        ranks.close()
    except (Exception, KeyboardInterrupt) as error:
        message, code = ending(error)
        ranks.leave(message, isinstance(error, RankLost), _say if code else lambda message: None)
        if not code:
            raise
    sys.exit(code)


def _say(message: str) -> None:
    print(f"ddfast: {' '.join(message.split())}", file=sys.stderr)


@app.command()
@with_config_options
def distill(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option(help="the run folder [default: runs/DATA-ipcN]", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in --out", show_default=False)] = False,
    accept_data: Annotated[bool, typer.Option("--accept-data", help=ACCEPT_DATA, show_default=False)] = False,
    **options: Any,
) -> None:
    """Distil a data set; without arguments the real handwritten digits of scikit-learn.

    Data without a recipe gets DM + CM as published; every key of a recipe is an option of the same name.
    """
    given = _with_places(given_keys(options))
    named = bool(given.get("recipe"))
    if accept_data and not resume:
        raise UserError("accept_data is for --resume: a new run takes the data that --data names")
    base = _base(given)
    path = out or Path("runs") / _run_name(base, given)
    if resume:
        folder = RunFolder(path)
        folder.check(resume)
        stored = folder.load_config()
        if context.obj.size > 1:
            stored = stored.replace(device=_kind(stored.device))  # every rank takes its own GPU
        whole = dataclasses.asdict(base.override(**given))
        by_recipe = {key: value for key, value in whole.items() if named and value is not None}
        asked = {**by_recipe, **given}
        if "data" in given:
            stored = stored.replace(data=asked["data"])  # the same data may lie elsewhere now: Run compares them
        config = _resumed(stored, asked)
    else:
        config = base.override(**given)
    run = Run(config, path, resume, console, accept_data=accept_data, ranks=context.obj)
    _print_evaluation(run(), run.dataset.classes)
    _print_pictures(path)


def _with_places(given: dict[str, Any]) -> dict[str, Any]:
    """The keys, with absolute paths: a run is continued from any folder."""
    places = {name: given[name] for name in ("data", "pool") if given.get(name)}
    return {**given, **{name: absolute_place(place) for name, place in places.items()}}


def _base(given: dict[str, Any]) -> Config:
    """What the given keys change, without the recipe among them: an empty name asks for no recipe at all."""
    recipe = given.pop("recipe", None)
    if recipe is None and given.get("data", "digits") == "digits":
        recipe = "digits"
    return from_recipe(recipe) if recipe else defaults(given.get("data", Config.data))


def _run_name(base: Config, given: dict[str, Any]) -> str:
    name = base.recipe or Path(given.get("data", base.data)).name or "run"
    ipc = f"-ipc{given.get('ipc', base.ipc)}"
    return name.replace("/", "-").removesuffix(ipc) + ipc


def _resumed(stored: Config, asked: dict[str, Any]) -> Config:
    """The configuration of the run, unless what is asked for differs in anything but more iterations."""
    for name, value in asked.items():
        held = getattr(stored, name)
        more = name == "iterations" and value > held
        same = name == "device" and value in ("auto", _kind(held))
        if value != held and not more and not same:
            raise UserError(f"{name} is {held!r} in this run, not {value!r}; --resume continues a run as it was begun")
    return stored.replace(iterations=asked.get("iterations", stored.iterations))


def _kind(device: str) -> str:
    return device.partition(":")[0]


def _print_evaluation(evaluation: dict[str, Any], classes: tuple[str, ...]) -> None:
    if evaluation:
        console.print(evaluation_table(evaluation))
        distilled = evaluation["distilled"]
        if distilled.get("distill_seconds"):  # not of images from elsewhere
            console.print(f"{distilled['iteration']:,} iterations in {distilled['distill_seconds']:,.1f} s")
        if len(classes) <= 20:
            console.print(class_table(evaluation, classes))


def _print_pictures(path: Path) -> None:
    found = [str(path / name) for name in ("images.png", "curve.png") if (path / name).exists()]
    console.print(Text(f"pictures: {', '.join(found) or 'none'}"), soft_wrap=True)


@app.command()
@with_config_options
def sweep(
    grid: Annotated[list[str], typer.Option(help="a key with its values, KEY=0,0.1,1; once for every key")],
    seeds: Annotated[int, typer.Option(help="runs of every point", min=1)] = 2,
    out: Annotated[
        Path | None, typer.Option(help="the folder of all runs [default: runs/DATA-ipcN-sweep]", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the sweep in --out", show_default=False)] = False,
    **options: Any,
) -> None:
    """Distil with every combination of some keys' values, and compare them on held-out training images.

    A quarter of the training images is held out, unless --holdout says otherwise; test images are never touched. All
    options of distill are there, for all points alike.
    """
    given = given_keys(options)
    base = _base(given)
    path = out or Path("runs") / f"{_run_name(base, given)}-sweep"
    results = Sweep(base, given, parse_grid(grid), seeds, path, resume, console)()
    _print_sweep(path, results)
    if all(point["mean"] is None for point in results["points"]):
        raise RunFailed("no point of the grid came to its end")


def _print_sweep(path: Path, results: dict[str, Any]) -> None:
    console.print(sweep_table(results))
    best = ranked(results["points"])[0]
    if best["error"] is not None:
        console.print(f"within error: at most one standard error ({best['error']:.1f}) below the best")
    if best["mean"] is not None:
        console.print(Text(f"the best: {options_line(best['keys'])}"), soft_wrap=True)
    if (path / "sweep.png").exists():
        console.print(Text(f"picture: {path / 'sweep.png'}"), soft_wrap=True)


@app.command()
@with_data_options
def pretrain(
    context: typer.Context,
    data: Annotated[str, typer.Option(help="digits, cifar10 or another known name, hf:NAME, or a folder")],
    count: Annotated[int, typer.Option(help="networks in the pool", min=1)],
    out: Annotated[Path, typer.Option(help="the folder of the pool; one that is there already is completed")],
    epochs: Annotated[int, typer.Option(help="epochs for each network", min=1)] = 40,
    network: Annotated[str, typer.Option(help="resnet18, vgg11, alexnet or convnet")] = "resnet18",
    width: Annotated[int | None, typer.Option(help="channels of the network [default: its own]", min=1)] = None,
    depth: Annotated[int | None, typer.Option(help="blocks of the ConvNet [default: 3]", min=1)] = None,
    norm: Annotated[str | None, typer.Option(help="instance, group, layer or none [default: its own]")] = None,
    activation: Annotated[str | None, typer.Option(help="of the ConvNet: relu, leakyrelu or sigmoid")] = None,
    pooling: Annotated[str | None, typer.Option(help="of the ConvNet: avg, max or none")] = None,
    weight_decay: Annotated[float, typer.Option(help="5e-4 in IID, 1e-3 in CMI", min=0)] = 5e-4,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    precision: Annotated[str, typer.Option(help="of a step: float32, tf32 (CUDA only) or bf16")] = "float32",
    augmentation: Annotated[str, typer.Option(help="operations joined by _, or none")] = "none",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    **options: Any,
) -> None:
    """Pre-train the networks that class centralization and CMI need; goes on where it was stopped."""
    ranks = context.obj
    dataset = load_data(Config(data=data, **given_keys(options)), find_device(device, ranks), console, ranks)
    settings = PoolConfig(
        epochs, network, width, depth, norm, weight_decay, seed, precision, augmentation, activation, pooling
    )
    with ranks.stop() as stop:
        pretrain_with_progress(out, dataset, count, settings, console, stop, ranks)
    networks = trained(out)
    console.print(pool_table(networks))
    console.print(Text(f"{len(networks)} networks in {out}"), soft_wrap=True)


@app.command()
@with_evaluation_options
def evaluate(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="a run folder, or images that --data tests", show_default=False)],
    networks: Annotated[str, typer.Option(help="names joined by commas [default: the run's]", show_default=False)] = "",
    out: Annotated[Path | None, typer.Option(help="folder of the results [default: beside PATH]")] = None,
    accept_data: Annotated[bool, typer.Option("--accept-data", help=ACCEPT_DATA, show_default=False)] = False,
    labels: Annotated[Path | None, typer.Option(help="a file of labels for images that come without")] = None,
    normalised: Annotated[
        bool | None,
        typer.Option("--normalised/--pixels", help="what floating point images are [default: their values tell]"),
    ] = None,
    **options: Any,
) -> None:
    """Evaluate the images of a run again, perhaps with other networks, or images that ddfast did not make.

    Those are an .npz, .safetensors or .pt file with images and labels, a folder of such files, or a folder of
    CLASS/*.png. A run's keys are the
    defaults of its options, those of its network only for that network.
    """
    subject = find_subject(
        path,
        given_keys(options),
        out,
        console,
        context.obj,
        accept_data=accept_data,
        labels=labels,
        normalised=normalised,
    )
    names = list(dict.fromkeys(name.strip() for name in networks.split(",") if name.strip())) or [""]
    configs = [subject.config_of(name) for name in names]  # an unknown name must fail before an hour with a known one
    found = {}
    for name, config in zip(names, configs, strict=True):
        with context.obj.stop() as stop:
            found[config.network] = subject.evaluate(config, console, stop)
        console.print(Text(f"network: {config.network}"))
        _print_evaluation(found[config.network], subject.dataset.classes)
        subject.save(name, found[config.network])
    if len(found) > 1:
        console.print(networks_table(found))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="a run folder, or that of a sweep", show_default=False)],
    check: Annotated[bool, typer.Option("--check", help="exit with 1 unless distilled beats random")] = False,
) -> None:
    """Print the table of a run, or of a sweep."""
    if (run / FILE).exists():
        _print_sweep(run, load_results(run))
        return
    folder = RunFolder(run)
    folder.check(resume=True)
    evaluation = folder.evaluation()
    if not evaluation:
        raise UserError(f"{run} holds no evaluation; ddfast evaluate makes one")
    _print_evaluation(evaluation, folder.load_classes())
    _print_pictures(run)
    if check and "random" not in evaluation:
        raise UserError(f"{run} holds no evaluation of random images to compare with")
    if check and not evaluation["distilled"]["mean"] > evaluation["random"]["mean"]:
        _say("the distilled images are no better than random real ones")
        raise typer.Exit(1)


@app.command("recipes")
def list_recipes(name: Annotated[str, typer.Argument(help="print this one whole")] = "") -> None:
    """List the recipes, or print all keys of one and where they come from."""
    if name:
        console.print(Text(printed(name).rstrip()), soft_wrap=True)
        return
    known = recipes()
    widest = max(map(len, known))
    for each, keys in known.items():
        console.print(Text(f"{each:<{widest}}  {keys['description']}"), soft_wrap=True)


@app.command()
def info() -> None:
    """Print versions, devices, and which backend each operator would use here, and why not another."""
    for line in info_lines():
        console.print(Text(line), soft_wrap=True)
