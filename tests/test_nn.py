import copy
import pickle

import pytest
import torch
from oracle import COMPLEXITY, MATCHING, MOMENTS, batch, differentiate

import ddfast
from ddfast import functional, nn

LOSSES = MATCHING + MOMENTS + COMPLEXITY
pytestmark = pytest.mark.usefixtures("poisoned")

MODULES = {
    "distribution_matching": nn.DistributionMatching,
    "covariance_matching": nn.CovarianceMatching,
    "moment_matching": nn.MomentMatching,
    "class_centralization": nn.ClassCentralization,
    "conditional_mutual_information": nn.ConditionalMutualInformation,
    "class_complexity": nn.ClassComplexity,
}


def test_a_module_is_its_function(loss, backend, device):
    b = batch(loss.row).to(torch.float32).to(device)
    module = MODULES[loss.function.__name__](**loss.options, backend=backend)
    arguments = loss.arguments(b)
    value, gradient = differentiate(lambda syn: module(*arguments(syn)), b.syn)
    expected, expected_gradient = differentiate(loss.of(b, backend), b.syn)
    assert torch.equal(value, expected)
    assert torch.equal(gradient, expected_gradient)


def test_defaults_are_those_of_the_function(loss, backend, device):
    b = batch(loss.row).to(torch.float32).to(device)
    module = MODULES[loss.function.__name__]()
    features = b.real.flatten(1) if not loss.matching else b.real
    arguments = (features,) if not loss.matching else (b.real, b.syn)
    assert torch.equal(module(*arguments), loss.function(*arguments))


@pytest.mark.parametrize("module", [nn.MomentMatching(return_terms=True), nn.ClassComplexity(return_terms=True)])
def test_terms(module):
    sides = (torch.randn(4, 3), torch.randn(4, 3))
    loss, terms = module(*sides) if isinstance(module, nn.MomentMatching) else module(sides[0])
    assert len(terms) == 2
    assert loss.shape == ()


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.DistributionMatching(), "DistributionMatching(backend=None)"),
        (
            nn.CovarianceMatching(local="rows", precision="tf32", backend="reference"),
            "CovarianceMatching(local='rows', precision='tf32', backend='reference')",
        ),
        (
            nn.MomentMatching(covariance_weight=0.03),
            "MomentMatching(mean_weight=1.0, covariance_weight=0.03, local='channels', return_terms=False, "
            "precision=None, backend=None)",
        ),
        (nn.ClassCentralization(alpha=0.02, beta=1), "ClassCentralization(alpha=0.02, beta=1, backend=None)"),
        (
            nn.ConditionalMutualInformation(reduction="sum"),
            "ConditionalMutualInformation(reduction='sum', backend=None)",
        ),
        (
            nn.ClassComplexity(cmi_weight=2000),
            "ClassComplexity(centralization_weight=0.05, cmi_weight=2000, alpha=None, beta=0.0, return_terms=False, "
            "backend=None)",
        ),
    ],
)
def test_repr_shows_every_option(module, text):
    assert repr(module) == text


@pytest.mark.parametrize("module", MODULES.values())
def test_modules_have_no_state(module):
    instance = module()
    assert isinstance(instance, torch.nn.Module)
    assert list(instance.parameters()) == list(instance.buffers()) == []
    assert instance.state_dict() == {}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_copies_and_pickles(duplicate):
    module = duplicate(nn.ClassCentralization(alpha=0.1, beta=0.5))
    features = torch.randn(4, 3)
    assert torch.equal(module(features), functional.class_centralization(features, alpha=0.1, beta=0.5))


def test_wrong_options_are_named_at_the_call_as_by_the_function():
    with pytest.raises(ValueError, match="reduction must be one of 'batchmean', 'sum', 'none', got 'mean'"):
        nn.ConditionalMutualInformation(reduction="mean")(torch.randn(4, 3))


def test_modules_compile():
    torch._dynamo.reset()
    module = nn.ClassComplexity()
    features = torch.randn(6, 5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(features), module(features))


def test_public_names():
    assert ddfast.__all__ == ["ClassMoments", "ClassSegments", "functional", "nn"]
    assert sorted(functional.__all__) == functional.__all__ == sorted(MODULES)
    assert sorted(nn.__all__) == nn.__all__ == sorted(module.__name__ for module in MODULES.values())
    for owner in (ddfast, functional, nn):
        assert all(hasattr(owner, name) for name in owner.__all__)
