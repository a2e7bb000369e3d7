"""What all losses have in common: autograd, precision, determinism, schemas, compilation, and the choice of backend."""

import inspect
import json

import pytest
import torch
from oracle import (
    COMPLEXITY,
    DTYPES,
    MATCHING,
    MOMENTS,
    assert_close,
    batch,
    differentiate,
    distance,
    runnable,
    uniform,
)
from torch.profiler import ProfilerActivity, profile
from tracing import Recorder, compiled

import ddfast.functional as DF
from ddfast import ClassMoments, ClassSegments
from ddfast.operators import backends, closed_form, complexity, library, matching
from ddfast.operators.schemas import SIGNATURES

LOSSES = MATCHING + MOMENTS + COMPLEXITY
pytestmark = pytest.mark.usefixtures("poisoned")


def test_poison():
    assert torch.empty(1000).isnan().all()


# Gradients


def test_gradcheck(loss, backend, device):
    b = batch(loss.row).to(device)
    assert torch.autograd.gradcheck(loss.of(b, backend), b.syn.clone().requires_grad_(), atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("upstream", [1.0, -2.5, 1e-3, 0.0])
def test_any_upstream_gradient(loss, upstream, backend, device):
    b = batch(loss.row).to(device)
    call = loss.of(b, backend)
    value, gradient = differentiate(call, b.syn)
    _, scaled = differentiate(call, b.syn, torch.full_like(value, upstream))
    assert_close(scaled, upstream * gradient)
    assert (upstream != 0) or (scaled == 0).all()


@pytest.mark.losses("cmi-none")
def test_an_upstream_gradient_for_each_class(loss, backend, device):
    b = batch(loss.row).to(device)
    upstream = torch.tensor([2.0, -1.0, 5.0, 0.0, 0.5], dtype=torch.float64, device=device)
    _, gradient = differentiate(loss.of(b, backend), b.syn)
    _, scaled = differentiate(loss.of(b, backend), b.syn, upstream)
    assert_close(scaled, upstream[b.labels, None] * gradient)


def test_a_weight_outside_scales_the_gradient(loss, backend, device):
    """The loss as a part of a sum, beside another term."""
    b = batch(loss.row).to(device)
    call = loss.of(b, backend)
    _, gradient = differentiate(call, b.syn)
    _, total = differentiate(lambda syn: 3 * call(syn).sum() + syn.square().sum(), b.syn)
    assert_close(total, 3 * gradient + 2 * b.syn)


def test_two_backwards_give_the_same(loss, backend, device):
    b = batch(loss.row).to(torch.float32).to(device)
    leaf = b.syn.clone().requires_grad_()
    value = loss.of(b, backend)(leaf).sum()
    (first,) = torch.autograd.grad(value, leaf, retain_graph=True)
    first = first.clone()
    (second,) = torch.autograd.grad(value, leaf)
    assert torch.equal(first, second)
    assert first.abs().sum() > 0
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        value.backward()


def test_a_second_order_raises_and_says_so(loss, backend, device):
    """A gradient taken for a constant would be wrong in silence, as in a gradient penalty beside another loss."""
    b = batch(loss.row).to(device)
    leaf = b.syn.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss.of(b, backend)(leaf).sum(), leaf, create_graph=True)
    penalty = gradient.square().sum() + leaf.sum()
    with pytest.raises(RuntimeError, match="losses are first-order: their gradient cannot be differentiated again"):
        penalty.backward()
    assert_close(gradient.detach(), differentiate(loss.of(b, backend), b.syn)[1])


def test_a_gradient_through_the_upstream_gradient_raises_as_well(loss, backend, device):
    b = batch(loss.row).to(device)
    leaf, weight = b.syn.clone().requires_grad_(), torch.ones((), device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad(weight * loss.of(b, backend)(leaf).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="losses are first-order"):
        torch.autograd.grad(gradient.sum(), weight)


def test_functional_gradients(loss, backend, device):
    b = batch(loss.row).to(device)
    call = loss.of(b, backend)
    scalar = lambda syn: call(syn).sum()  # noqa: E731
    assert_close(torch.func.grad(scalar)(b.syn), differentiate(call, b.syn)[1])


def test_no_graph_without_need(loss, backend, device):
    b = batch(loss.row).to(device)
    leaf = b.syn.clone().requires_grad_()
    call = loss.of(b, backend)
    with torch.no_grad(), Recorder() as recorder:
        without = call(leaf)
    assert recorder.passed("needs_grad") == [False]
    with torch.inference_mode():
        inference = call(leaf)
    assert without.grad_fn is inference.grad_fn is call(b.syn).grad_fn is None
    assert not without.requires_grad
    assert torch.equal(without, call(leaf))
    assert torch.equal(inference, without)
    assert torch.equal(call(b.syn), without)


def test_features_changed_before_backward_are_noticed(loss, backend, device):
    b = batch(loss.row).to(device)
    features = b.syn.clone().requires_grad_() * 1
    value = loss.of(b, backend)(features).sum()
    with torch.no_grad():
        features.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_inputs_are_left_alone(loss, backend, device):
    """By value as well: a kernel that writes past the version counter would go unnoticed."""
    b = batch(loss.row).to(torch.float32).to(device)
    leaf = b.syn.clone().requires_grad_()
    arguments = loss.arguments(b)(leaf)
    tensors = [
        x for it in arguments if it is not None for x in (vars(it).values() if hasattr(it, "__dict__") else [it])
    ]
    tensors = [b.real, leaf, *(x for x in tensors if isinstance(x, torch.Tensor))]
    before = [(x._version, x.detach().clone()) for x in tensors]
    loss.function(*arguments, **loss.options, backend=backend).sum().backward()
    for x, (version, value) in zip(tensors, before, strict=True):
        assert x._version == version
        assert torch.equal(x.detach(), value)


# Results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_result_is_float64_for_float64_and_float32_otherwise(loss, dtype, backend, device):
    b = batch(loss.row).to(dtype).to(device)
    value, gradient = differentiate(loss.of(b, backend), b.syn)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.shape == ((5,) if loss.name == "cmi-none" else ())
    assert value.device == gradient.device == b.syn.device
    assert gradient.dtype == dtype


def test_bitwise_the_same_from_run_to_run(loss, backend, device):
    b = batch((*loss.row[:-1], 33), torch.arange(300) % 4, torch.arange(130) % 4).to(torch.float32).to(device)
    call = loss.of(b, backend)
    value, gradient = differentiate(call, b.syn)
    again, gradient_again = differentiate(call, b.syn)
    assert torch.equal(value, again)
    assert torch.equal(gradient, gradient_again)


def test_the_order_of_rows_does_not_matter(loss, backend, device):
    b = batch(loss.row).to(device)
    order = torch.tensor([7, 0, 3, 10, 5, 1, 9, 2, 8, 4, 6], device=device)
    shuffled = type(b)(b.real, b.real_labels, b.syn[order], b.labels[order], 5)
    value, gradient = differentiate(loss.of(b, backend), b.syn)
    other, other_gradient = differentiate(loss.of(shuffled, backend), shuffled.syn)
    assert_close(other, value)
    assert_close(other_gradient, gradient[order])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(loss, dtype, backend, device):
    b = batch(loss.row).to(torch.float32).to(device)
    call = loss.of(b, backend)
    value, gradient = differentiate(call, b.syn)
    with torch.autocast(device, dtype):
        leaf = b.syn.clone().requires_grad_()
        autocast = call(leaf)
        (autocast_gradient,) = torch.autograd.grad(autocast.sum(), leaf)
    assert autocast.dtype == torch.float32
    assert torch.equal(autocast.detach(), value)
    assert torch.equal(autocast_gradient, gradient)


def set_medium():
    torch.set_float32_matmul_precision("medium")


def set_tf32():
    torch.backends.fp32_precision = "tf32"


@pytest.mark.parametrize("steps", [(set_medium,), (set_tf32,), (set_medium, set_tf32), (set_tf32, set_medium)])
def test_global_precision_neither_matters_nor_changes(loss, steps, backend, device, matmul_flags):
    b = batch(loss.row).to(torch.float32).to(device)
    call = loss.of(b, backend)
    value, gradient = differentiate(call, b.syn)
    for step in steps:
        step()
        before = matmul_flags()
        lowered, lowered_gradient = differentiate(call, b.syn)
        assert matmul_flags() == before
        assert distance(lowered, value) <= 1e-6
        assert distance(lowered_gradient, gradient) <= 1e-6


@pytest.mark.losses("cm-maps")
def test_flags_that_inherit_their_value_still_do_afterwards(loss, backend, device, matmul_flags):
    torch.backends.fp32_precision = "tf32"
    lowered = matmul_flags()
    b = batch(loss.row).to(torch.float32).to(device)
    differentiate(loss.of(b, backend), b.syn)
    assert matmul_flags() == lowered
    torch.backends.fp32_precision = "ieee"
    assert matmul_flags() == ("ieee", "ieee", "ieee")


@pytest.mark.parametrize("lower", [set_medium, set_tf32])
def test_the_reference_multiplies_exactly_where_flags_would_not(lower, matmul_flags):
    """Whether this machine's products are lowered or not: CPUs differ in that."""
    a, b = torch.randn(2, 33, 129), torch.randn(2, 129, 17)
    exact = (a.double() @ b.double()).float()
    assert not torch.equal(closed_form.product(a, b), exact)
    lower()
    assert torch.equal(closed_form.product(a, b), exact)


def test_the_losses_do_not_synchronise(loss, backend, device):
    """Neither a value nor a data-dependent shape is asked for, in the forward or in the backward."""
    b = batch(loss.row).to(device)
    call = loss.of(b, backend)
    if device == "cuda":
        leaf = b.syn.clone().requires_grad_()
        call(leaf).sum().backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call(leaf).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        differentiate(call, b.syn)
    names = {event.name for event in profiled.events()}
    assert any("ddfast" in name for name in names)
    assert names.isdisjoint({"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need CUDA")
def test_capturable_in_a_cuda_graph():
    for loss in LOSSES:
        for backend, device in runnable(*loss.operators):
            if device == "cuda":
                assert_capturable(loss, backend)


def assert_capturable(loss, backend):
    """A graph of one batch, replayed, gives the loss and the gradient of another."""
    b, other = batch(loss.row).to("cuda"), batch(loss.row, seed=1).to("cuda")
    call = loss.of(b, backend)
    leaf = b.syn.clone().requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(call(leaf).sum(), leaf)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = call(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    with torch.no_grad():
        leaf.copy_(other.syn)
    graph.replay()
    expected, expected_gradient = differentiate(call, other.syn)
    assert_close(value.detach(), expected)
    assert_close(gradient, expected_gradient)


@pytest.mark.losses("cm", "mm-rows", "cm-moments")
@pytest.mark.parametrize("precision", [None, "tf32"])
def test_only_tf32_allows_tf32(loss, precision, backend, device):
    """The operators are told in forward and backward; whether they make use of it is theirs."""
    b = batch(loss.row).to(torch.float32).to(device)
    call = loss.of(b, backend, precision=precision)
    with Recorder() as recorder:
        differentiate(call, b.syn)
    assert recorder.passed("tf32") == [precision == "tf32"] * 2


@pytest.mark.operators("class_moments")
@pytest.mark.parametrize("precision", [None, "tf32"])
def test_only_tf32_allows_tf32_in_moments(precision, backend, device):
    with Recorder() as recorder:
        ClassMoments.from_features(torch.randn(4, 3, device=device), precision=precision, backend=backend)
    assert recorder.passed("tf32") == [precision == "tf32"]


# Schemas and compilation


CHECKED = {
    "moment_matching": ("mm", "dm", "cm-rows"),
    "moment_matching_to_moments": ("mm-moments", "dm-moments", "cm-rows-moments"),
    "moment_matching_backward": ("mm", "dm", "cm-rows"),
    "class_complexity": ("cx-exponential", "cc", "cmi", "cmi-none"),
    "class_complexity_backward": ("cx-exponential", "cc", "cmi", "cmi-none"),
    "class_moments": ("mm-moments", "cm-rows-moments"),
}
NEEDS_GRAD = {"class_moments": [False], "moment_matching_backward": [True], "class_complexity_backward": [True]}
OVERLOADS = [
    (operator, *pair, needs_grad)
    for operator in CHECKED
    for pair in runnable(operator)
    for needs_grad in NEEDS_GRAD.get(operator, [False, True])
]


@pytest.mark.parametrize("segments", ["uniform", "ragged"])
@pytest.mark.parametrize(("operator", "backend", "device", "needs_grad"), OVERLOADS)
def test_opcheck(operator, backend, device, needs_grad, segments):
    """Schema, autograd registration, fake tensors and dynamic tracing, of the calls that the losses really make."""
    checked = 0
    for loss in (loss for loss in LOSSES if loss.name in CHECKED[operator]):
        b = uniform(loss.row, 3, 4, 2) if segments == "uniform" else batch(loss.row)
        b = b.to(torch.float32).to(device)
        syn = b.syn
        if loss.name == "cm-rows":
            syn = syn.contiguous(memory_format=torch.channels_last)
        with Recorder() as recorder:
            if operator == "class_moments":
                ClassMoments.from_features(syn, b.segments, **loss.options, backend=backend)
            else:
                value = loss.of(b, backend)(syn.clone().requires_grad_(needs_grad))
                if needs_grad:
                    value.sum().backward()
        for overload, arguments in recorder.calls:
            if overload._opname == operator:
                assert overload._overloadname == backend
                torch.library.opcheck(overload, arguments)
                checked += 1
    assert checked == len(CHECKED[operator])


def assert_same_compiled(function, loss, b, backend):
    arguments = loss.arguments(b)
    value, gradient = differentiate(lambda syn: function(*arguments(syn), **loss.options, backend=backend), b.syn)
    expected, expected_gradient = differentiate(loss.of(b, backend), b.syn)
    assert torch.equal(value, expected)
    assert torch.equal(gradient, expected_gradient)


@pytest.mark.losses("dm", "cm-rows", "mm", "mm-moments", "cc-exponential", "cmi", "cmi-none", "cx")
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_is_eager(loss, dynamic, backend, device):
    """As one graph, which serves any number of rows and classes where shapes are dynamic."""
    function, counter = compiled(loss.function, dynamic)
    assert_same_compiled(function, loss, batch(loss.row, num_classes=13).to(torch.float32).to(device), backend)
    before = counter.frame_count
    larger = batch(loss.row, torch.arange(60) % 7, torch.arange(33) % 7, 17).to(torch.float32).to(device)
    assert_same_compiled(function, loss, larger, backend)
    assert counter.frame_count - before == (0 if dynamic else 1)


@pytest.mark.full
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("segments", ["one class", "uniform", "ragged"])
def test_compiled_by_inductor_is_eager(loss, dynamic, segments, backend, device):
    function, _ = compiled(loss.function, dynamic, "inductor")
    for size in (2, 3):
        b = uniform(loss.row, 1 if segments == "one class" else size + 1, 2 * size, size)
        b = batch(loss.row, seed=size) if segments == "ragged" else b
        assert_same_compiled(function, loss, b.to(torch.float32).to(device), backend)


@pytest.mark.operators("class_complexity", "class_complexity_backward")
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_segments_and_sums_inside_compiled_code(dynamic, backend, device):
    """Uniform segments may be built there; terms come out of it; the graph goes on in both directions."""

    def step(features, classes):
        segments = ClassSegments.uniform(classes, len(features) // classes)
        hidden = (2 * features).sin()
        loss, terms = DF.class_complexity(hidden, segments, return_terms=True, backend=backend)
        return loss * 3 + terms["class_centralization"], terms

    function, _ = compiled(step, dynamic)
    for classes in (2, 3):
        features = torch.randn(12, 9, device=device)
        value, gradient = differentiate(lambda x, k=classes: function(x, k)[0], features)
        expected, expected_gradient = differentiate(lambda x, k=classes: step(x, k)[0], features)
        assert torch.equal(value, expected)
        assert torch.equal(gradient, expected_gradient)
        terms, expected_terms = function(features, classes)[1], step(features, classes)[1]
        assert terms.keys() == expected_terms.keys()
        assert all(torch.equal(terms[name], expected_terms[name]) for name in terms)


@pytest.mark.operators("class_moments")
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_moments_inside_compiled_code(dynamic, backend, device):
    def merged(first, second, segments):
        chunks = [ClassMoments.from_features(x, segments, local="rows", backend=backend) for x in (first, second)]
        return chunks[0].merge(chunks[1])

    function, _ = compiled(merged, dynamic)
    for rows in (12, 15):
        features = torch.randn(2, rows, 3, 2, 5, device=device).unbind()
        segments = ClassSegments.from_labels(torch.arange(rows, device=device) % 5, 6)
        moments, expected = function(*features, segments), merged(*features, segments)
        for name in ("counts", "means", "covariances"):
            assert torch.equal(getattr(moments, name), getattr(expected, name))
        assert moments.local == "rows"


@pytest.mark.losses("mm", "mm-moments", "cx")
def test_a_second_order_raises_in_compiled_code_as_well(loss, backend, device):
    b = batch(loss.row).to(device)
    function, _ = compiled(loss.function, False)
    leaf = b.syn.clone().requires_grad_()
    value = function(*loss.arguments(b)(leaf), **loss.options, backend=backend).sum()
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
    penalty = gradient.square().sum() + leaf.sum()
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        penalty.backward()


# The choice of backend


def match_on(name):
    """A loss of small CPU tensors on that backend."""
    return DF.moment_matching(torch.randn(4, 3), torch.randn(4, 3), backend=name)


@pytest.fixture
def pretend(monkeypatch):
    """Makes a backend claim an operator."""

    def claim(backend, *operators):
        monkeypatch.setitem(backends.implemented, backend, backends.implemented[backend] | set(operators))

    return claim


def test_reference_has_every_operator():
    assert backends.implemented["reference"] == set(library.SIGNATURES)
    assert set(backends.implemented) == {"reference", "cpp", "triton", "cuda"}


@pytest.mark.parametrize("name", backends.BACKENDS)
@pytest.mark.parametrize("function", ["moment_matching", "class_complexity", "class_moments"])
def test_a_backend_that_cannot_run_here_says_why(function, name):
    reason = backends.refusal(name, function, torch.device("cpu"))
    call = {
        "moment_matching": match_on,
        "class_complexity": lambda name: DF.class_complexity(torch.randn(4, 3), backend=name),
        "class_moments": lambda name: ClassMoments.from_features(torch.randn(4, 3), backend=name),
    }[function]
    if reason is None:
        call(name)
        return
    assert repr(name) in reason
    with pytest.raises(NotImplementedError) as caught:
        call(name)
    assert str(caught.value) == reason


def test_a_backend_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setitem(backends.implemented, "cpp", set())
    with pytest.raises(NotImplementedError, match="backend 'cpp' is not here"):
        match_on("cpp")


def test_a_backend_without_an_operator_says_so(monkeypatch):
    monkeypatch.setitem(backends.implemented, "cpp", {"class_complexity"})
    with pytest.raises(NotImplementedError, match="backend 'cpp' does not implement moment_matching"):
        match_on("cpp")


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_gpu_backends_refuse_cpu_tensors(name, pretend, monkeypatch):
    pretend(name, "moment_matching")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(NotImplementedError, match=f"backend '{name}' needs CUDA tensors, got cpu tensors"):
        match_on(name)


def test_cpp_refuses_gpu_tensors(pretend):
    pretend("cpp", "moment_matching")
    with pytest.raises(NotImplementedError, match="backend 'cpp' needs CPU tensors, got cuda tensors"):
        backends.choose("moment_matching", torch.device("cuda"), "cpp")


def test_triton_takes_cpu_tensors_in_its_interpreter_alone_and_never_by_default(pretend, monkeypatch):
    for name in ("triton", "cuda"):
        pretend(name, *SIGNATURES)
    cpu = torch.device("cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.choose("moment_matching", cpu, "triton") == "triton"
    assert backends.choose("moment_matching", cpu, None) in ("cpp", "reference")
    with pytest.raises(NotImplementedError, match="'cuda' needs CUDA tensors"):
        backends.choose("moment_matching", cpu, "cuda")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(NotImplementedError, match="'triton' needs CUDA tensors"):
        backends.choose("moment_matching", cpu, "triton")


def test_the_default_is_what_is_there(monkeypatch, pretend):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for name in ("cpp", "triton", "cuda"):
        monkeypatch.setitem(backends.implemented, name, set())
    assert backends.choose("class_moments", cpu, None) == backends.choose("class_moments", cuda, None) == "reference"
    pretend("cpp", "class_moments")
    assert backends.choose("class_moments", cpu, None) == "cpp"
    assert backends.choose("class_moments", cuda, None) == "reference"
    assert backends.choose("class_complexity", cpu, None) == "reference"
    pretend("triton", "class_moments")
    assert backends.choose("class_moments", cpu, None) == "cpp"
    assert backends.choose("class_moments", cuda, None) == "triton"
    assert backends.choose("class_moments", cpu, "reference") == "reference"


def test_triton_comes_before_cuda_until_a_measurement_of_the_gpu_says_otherwise(monkeypatch, pretend):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(backends, "faster", {})
    for name in ("triton", "cuda"):
        pretend(name, "moment_matching")
    assert backends.choose("moment_matching", gpu, None) == "triton"
    monkeypatch.setitem(backends.faster, "cuda", lambda device: "cuda" if device == gpu else None)
    assert backends.choose("moment_matching", gpu, None) == "cuda"
    assert backends.choose("moment_matching", torch.device("cuda", 1), None) == "triton"
    monkeypatch.setitem(backends.implemented, "cuda", set())
    assert backends.choose("moment_matching", gpu, None) == "triton", "what was measured and is not here"


def test_the_table_of_a_gpu_names_the_faster_backend(tmp_path, monkeypatch):
    from ddfast.kernels import tables

    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    cut = {
        "kernel": "moments",
        "d": 128,
        "p": 16,
        "precision": "float32",
        "block": 64,
        "step": 32,
        "warps": 8,
        "stages": 3,
    }
    for name, rows in {"quick": [cut, {"kernel": "matching", "backend": "cuda"}], "slow": [cut]}.items():
        (tmp_path / f"{name}-of-a-test.json").write_text(json.dumps(rows))
    assert tables.preferred("quick-of-a-test") == "cuda"
    assert tables.preferred("slow-of-a-test") is None
    assert tables.preferred("") is None
    assert tables.measured("moments", 128, 16, "float32", "quick-of-a-test") == (64, 32, 8, 3)


@pytest.mark.parametrize(
    ("triton", "numpy", "runs"), [("3.6.0", "2.3.5", True), ("3.6.0", "2.4.0", False), ("3.10.1", "2.5.2", True)]
)
def test_the_interpreter_says_which_numpy_it_needs(triton, numpy, runs, monkeypatch):
    monkeypatch.setattr(backends.metadata, "version", {"triton": triton, "numpy": numpy}.__getitem__)
    reason = backends.interpreter_refusal.__wrapped__()
    assert (reason is None) == runs
    assert runs or reason == (
        "the interpreter of Triton 3.6.0 does not run with NumPy 2.4.0: install 'numpy<2.4' or 'triton>=3.7'"
    )


@pytest.mark.parametrize(
    ("wrong", "hint"), [("trition", "; did you mean 'triton'?"), ("cpu", "; did you mean 'cpp'?"), ("eager", "")]
)
def test_an_unknown_backend(wrong, hint):
    with pytest.raises(ValueError, match="backend must be one of") as caught:
        match_on(wrong)
    assert str(caught.value) == f"backend must be one of reference, cpp, triton, cuda, got {wrong!r}{hint}"


@pytest.mark.parametrize("name", [None, "reference"])
def test_the_backward_runs_on_the_backend_of_the_forward(name, monkeypatch):
    asked = []

    def spy(module):
        real = module.overload
        monkeypatch.setattr(module, "overload", lambda *args: asked.append(args[:2]) or real(*args))

    spy(matching)
    spy(complexity)
    features = torch.randn(4, 3, requires_grad=True)
    DF.moment_matching(torch.randn(4, 3), features, backend=name).backward()
    DF.class_complexity(features, backend=name).backward()
    assert asked == [
        (operator, name)
        for operator in (
            "moment_matching",
            "moment_matching_backward",
            "class_complexity",
            "class_complexity_backward",
        )
    ]


# The public face


def test_signatures():
    """Names, order and defaults are fixed: `name=default`, and what comes after `*` by keyword alone."""
    sides = "real, syn, real_segments=None, syn_segments=None, *"
    tail = "return_terms=False, precision=None, backend=None"
    expected = {
        "distribution_matching": f"{sides}, backend=None",
        "covariance_matching": f"{sides}, local='channels', precision=None, backend=None",
        "moment_matching": f"{sides}, mean_weight=1.0, covariance_weight=0.01, local='channels', {tail}",
        "class_centralization": "features, segments=None, *, alpha=None, beta=0.0, backend=None",
        "conditional_mutual_information": "features, segments=None, *, reduction='batchmean', backend=None",
        "class_complexity": "features, segments=None, *, centralization_weight=0.05, cmi_weight=1.0, alpha=None, "
        "beta=0.0, return_terms=False, backend=None",
    }
    for name, signature in expected.items():
        parameters = inspect.signature(getattr(DF, name)).parameters.values()
        bare = inspect.Signature([it.replace(annotation=inspect.Parameter.empty) for it in parameters])
        assert str(bare) == f"({signature})"


def test_options_by_position_are_refused():
    with pytest.raises(TypeError, match="positional"):
        DF.class_centralization(torch.randn(4, 3), None, 0.1)
