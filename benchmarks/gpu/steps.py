"""What the two commands run, in the order of its value: what is at the end is what a short time leaves out.

The first command asks whether everything is right and how fast it is. The second one repeats what failed, and shows
what whole runs on real images are worth.
"""

from benchmarks.gpu.case import Step

_HERE = "benchmarks.gpu"

FIRST = (
    Step("probe", f"{_HERE}.probe:cases", wish=12, limit=60, why="what the card is, whether its tensor cores truncate"),
    Step(
        "smoke", f"{_HERE}.smoke:cases", wish=70, least=20, why="every operator against float64, all failures at once"
    ),
    Step("loss capture", f"{_HERE}.captured:loss_cases", wish=12, why="losses in a graph, bit for bit"),
    Step(
        "iteration capture",
        f"{_HERE}.captured:iteration_cases",
        wish=25,
        why="whole iterations in a graph, bit for bit",
    ),
    Step(
        "operator times",
        f"{_HERE}.timing:operator_cases",
        wish=70,
        least=15,
        why="against the predictions and the floor",
    ),
    Step("iteration times", f"{_HERE}.timing:iteration_cases", wish=30, least=10, why="against the published loop"),
    Step("iteration memory", f"{_HERE}.timing:memory_cases", wish=20, why="allocated and reserved at the peak"),
    Step("rehearsal", f"{_HERE}.runs:rehearsal_cases", wish=20, why="a run folder from its first to its last file"),
    Step("blocks", f"{_HERE}.timing:block_cases", wish=20, why="conv_block against a convolution and norm_block"),
    Step("compile", f"{_HERE}.timing:compile_cases", wish=15, limit=60, extra=True, why="against torch.compile"),
)
SECOND = (
    Step("large iterations", f"{_HERE}.timing:large_cases", wish=15, why="TinyImageNet's size at IPC 50, while alone"),
    Step(
        "pool", f"{_HERE}.runs:pool_cases", wish=100, least=20, limit=600, beside=True, why="CC and CMI need networks"
    ),
    Step("again", f"{_HERE}.smoke:again", wish=20, why="what failed before"),
    Step("sanitizer", f"{_HERE}.checked:sanitizer_cases", wish=60, least=15, limit=120, why="accesses and races"),
    Step(
        "dm",
        f"{_HERE}.runs:dm_cases",
        wish=70,
        least=25,
        limit=600,
        grace=25,
        after=("pool",),
        why="the base of all comparisons",
    ),
    Step(
        "iid-dm",
        f"{_HERE}.runs:iid_dm_cases",
        wish=100,
        least=40,
        limit=600,
        grace=25,
        after=("pool",),
        why="the whole of IID",
    ),
    Step(
        "random",
        f"{_HERE}.runs:random_cases",
        wish=20,
        least=15,
        limit=600,
        extra=True,
        why="random real images beside them",
    ),
    Step("cmi", f"{_HERE}.runs:cmi_cases", wish=80, least=40, limit=600, extra=True, after=("pool",), why="CMI"),
    Step(
        "all", f"{_HERE}.runs:all_cases", wish=100, least=50, limit=600, extra=True, after=("pool",), why="all losses"
    ),
    Step(
        "tuning",
        f"{_HERE}.checked:tuning_cases",
        wish=30,
        limit=120,
        extra=True,
        after=("pool",),
        why="a shortlist of cuts",
    ),
)
COMMANDS = {"first": FIRST, "second": SECOND}
STEPS = FIRST + SECOND


def step_of(name: str) -> Step:
    """One of STEPS; or, for tests of what carries them out, "module:function" of cases."""
    if ":" in name:
        return Step(name, name, wish=5)
    return next(step for step in STEPS if step.name == name)
