"""The package as a whole: what it may not use, and that a wheel of it works in an environment of its own."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import ddfast
from ddfast.operators import backends, native

ROOT = Path(__file__).parents[1]
PACKAGE = Path(ddfast.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def names(path: Path) -> set[str]:
    """Every module that is imported and every dotted name that is called in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
    return found


class TestSource:
    def test_nothing_is_pickled(self) -> None:
        """Whoever opens a run folder of somebody else runs none of their code."""
        forbidden = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
        forbidden |= {"torch.save", "torch.jit.load", "np.load", "numpy.load", "eval", "exec"}
        found = {path.name: sorted(names(path) & forbidden) for path in MODULES}
        assert {name: used for name, used in found.items() if used} == {}

    @pytest.mark.parametrize(
        ("function", "safely"), [("NpzFile", "allow_pickle=False"), ("torch.load", "weights_only=True")]
    )
    def test_archives_are_read_without_their_code(self, function: str, safely: str) -> None:
        calls = [
            node
            for path in MODULES
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(function)
        ]
        assert calls
        assert all(safely in ast.unparse(call) for call in calls)

    def test_every_folder_with_code_is_installed(self) -> None:
        tree = ast.parse((ROOT / "setup.py").read_text("utf-8")).body
        assigned = {ast.unparse(node.targets[0]): node.value for node in tree if isinstance(node, ast.Assign)}
        folders = {".".join(path.parent.relative_to(PACKAGE).parts) for path in MODULES}
        assert folders - {""} <= set(ast.literal_eval(assigned["PACKAGES"]))

    @pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
    @pytest.mark.skipif(os.environ.get("DDFAST_NO_EXTENSION", "0") != "0", reason="DDFAST_NO_EXTENSION is set")
    def test_the_native_operators_are_built_where_they_can_be(self) -> None:
        assert native.module is not None, backends.absent["cpp"]

    @pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")
    def test_a_clone_stays_light(self) -> None:
        """Raw samples are kept compressed, superseded results are not kept: whoever clones gets all of it."""
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        sizes = {
            name: (ROOT / name).stat().st_size for name in filter(None, listed.split("\0")) if (ROOT / name).exists()
        }
        assert sum(sizes.values()) < 14e6, sorted(sizes, key=sizes.__getitem__)[-10:]

    def test_both_versions_agree(self) -> None:
        assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == ddfast.__version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the repository, with the setuptools of this environment."""
    copy = tmp_path_factory.mktemp("source") / "ddfast"
    keep_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "runs", "results", "__pycache__", "*.so")
    shutil.copytree(ROOT, copy, ignore=keep_out)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (built,) = (copy / "wheels").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment, in which the wheel is installed and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return python


@pytest.mark.full
class TestWheel:
    def test_holds_the_package_and_nothing_beside_it(self, wheel: Path) -> None:
        held = set(zipfile.ZipFile(wheel).namelist())
        files = {f"ddfast/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*") if path.is_file()}
        assert {name for name in files if Path(name).suffix in (".py", ".toml", ".typed")} <= held
        assert {"ddfast/py.typed", "ddfast/recipes/digits.toml", "ddfast/kernels/__init__.py"} <= held
        assert {name.split("/")[0] for name in held} <= {"ddfast", f"ddfast-{ddfast.__version__}.dist-info"}

    def test_works_where_it_is_installed(self, python: Path, tmp_path: Path) -> None:
        """PyTorch and the others come from this environment; ddfast must not."""
        code = "import ddfast, sys; print(ddfast.__file__); from ddfast.recipes import recipes; print(*recipes())"
        others = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r}); {code}"
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run([python, "-c", others], cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        file, known = done.stdout.splitlines()
        assert Path(file).is_relative_to(python.parents[1])
        assert {"digits", "iid-dm/cifar10-ipc10"} <= set(known.split())

    def test_has_its_command(self, python: Path, tmp_path: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
        command = [python.parent / "ddfast", "distill", "--ipc", "0"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stderr) == (2, "ddfast: ipc must be at least 1, got 0\n")
