r"""Minutes on a GPU of a machine without network, in two commands; `docs/gpu.md` says what they run and why.

python -m benchmarks.gpu first|second [--seconds N] [--out FOLDER]   FOLDER gets COMMAND.tar.xz and COMMAND.md
python -m benchmarks.gpu --rehearse [--out FOLDER]                   both on the CPU at toy sizes
python -m benchmarks.gpu bundle [--data FOLDER] [--check]            what is carried, in gpu-bundle/
python -m benchmarks.gpu read ARCHIVE ... [--into FOLDER]            an archive into results and README
python -m benchmarks.gpu predictions [--write]                       the table of docs/gpu.md
python -m benchmarks.gpu images FOLDER                               what packed images are worth
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

from benchmarks.gpu import arrival

ROOT = arrival.ROOT
WORK = ROOT / "runs" / "gpu"
REHEARSAL = 900.0  # seconds of each of the two commands, at most; two free cores need a tenth of it


def command(name: str, seconds: float, out: Path, bundle: Path, toy: bool = False) -> int:
    """Runs one of the two commands; whether something is wrong."""
    work = WORK / f"toy-{name}" if toy else WORK / name
    shutil.rmtree(work / "kept", ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with a fixed workspace
    carried = arrival.arrive(Path("nothing") if toy else bundle, work)
    print(f"carried: {carried}", flush=True)

    from benchmarks.gpu.case import is_wrong  # after the arrival: they import ddfast
    from benchmarks.gpu.session import Session
    from benchmarks.gpu.steps import COMMANDS

    again = ["smoke: mm small float32 reference"] if toy else arrival.failed_before(bundle)
    session = Session(name, COMMANDS[name], seconds, out, work, toy, again)
    records = session()
    print((out / f"{name}.md").read_text())
    return int(any(is_wrong(record) for record in records if record["kind"] == "case"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="both commands on the CPU at toy sizes")
    parser.add_argument("--seconds", type=float, help="that a command may take; default: 300")
    parser.add_argument("--out", type=Path, help="default: runs/gpu/out")
    parser.add_argument("--bundle", type=Path, default=arrival.BUNDLE)
    actions = parser.add_subparsers(dest="action")
    for name in ("first", "second"):
        action = actions.add_parser(name)
        action.add_argument("--seconds", type=float, default=argparse.SUPPRESS)
        action.add_argument("--out", type=Path, default=argparse.SUPPRESS)
        action.add_argument("--bundle", type=Path, default=argparse.SUPPRESS)
    for name in ("bundle", "read", "predictions", "images"):
        actions.add_parser(name, add_help=False)
    options, rest = parser.parse_known_args()
    out = (options.out or WORK / "out").resolve()
    if options.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        seconds = options.seconds or REHEARSAL
        return max(command(name, seconds, out, options.bundle, toy=True) for name in ("first", "second"))
    if options.action in ("first", "second"):
        if rest:
            parser.error(f"what is {' '.join(rest)}?")
        return command(options.action, options.seconds or 300.0, out, options.bundle.resolve())
    if options.action == "bundle":
        from benchmarks.gpu.bundle import main as chosen
    elif options.action == "read":
        from benchmarks.gpu.reading import main as chosen
    elif options.action == "predictions":
        from benchmarks.gpu.predictions import main as chosen
    elif options.action == "images":
        from benchmarks.gpu.lossy import main as chosen
    else:
        parser.error("first, second, bundle, read, predictions, images, or --rehearse")
    return chosen(sys.argv[sys.argv.index(options.action) + 1 :]) or 0


if __name__ == "__main__":
    sys.exit(main())
