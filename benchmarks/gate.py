"""No time without a right result: value and gradient against the definitions in float64, by the rule of all tests."""

import torch
from torch import Tensor

from benchmarks.cases import AUGMENT, Bind, Case, Function
from tests.oracle import Batch, assert_accurate, differentiate


class Gate:
    """The right results of a case, on inputs that are then timed."""

    def __init__(self, case: Case, batches: list[Batch]):
        self.case, self.batches = case, batches
        self.eager = [self.results(case.definition(batch), batch) for batch in batches]
        wide = [batch.to(torch.float64) for batch in batches]
        self.exact = [self.results(case.definition(batch), batch) for batch in wide]

    def refusal(self, contender: str, bind: Bind) -> str | None:
        """Why no time of this contender may be reported, in a sentence; None if its results are right."""
        actual = [self.results(bind(batch), batch) for batch in self.batches]
        dtype = self.case.features(self.batches[0]).dtype
        for name in actual[0]:
            triples = [
                tuple(results[name] for results in row) for row in zip(actual, self.eager, self.exact, strict=True)
            ]
            try:
                assert_accurate(triples, dtype, contender)
            except AssertionError as error:
                return f"{contender} is wrong on {self.case.workload.name}: {name} of {self.case.operator} {error}"
        return None

    def results(self, function: Function, batch: Batch) -> dict[str, Tensor]:
        features = self.case.features(batch)
        if self.case.differentiable:
            results = differentiate(function, features, self.case.upstream(batch))
            return dict(zip(("value", "gradient"), results, strict=True))
        if self.case.operator in AUGMENT:
            return {"images": function(features)}
        return dict(zip(("means", "covariances"), function(features), strict=True))
