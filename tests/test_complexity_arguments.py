"""What class centralization and CMI say of wrong arguments."""

import math

import pytest
import torch

import ddfast.functional as DF
from ddfast import ClassSegments

F = torch.randn(6, 4)
SHAPE = "features must have shape (N, E), got"
WRONG = {
    "array": ((F.numpy(),), {}, TypeError, "features must be a tensor, got ndarray"),
    "integers": (
        (F.int(),),
        {},
        TypeError,
        "features must be float32, float64, bfloat16 or float16, got torch.int32",
    ),
    "complex": (
        (F.cfloat(),),
        {},
        TypeError,
        "features must be float32, float64, bfloat16 or float16, got torch.complex64",
    ),
    "one dimension": ((F[0],), {}, ValueError, f"{SHAPE} (4,)"),
    "maps": ((F[..., None, None],), {}, ValueError, f"{SHAPE} (6, 4, 1, 1)"),
    "labels for segments": (
        (F, torch.zeros(6)),
        {},
        TypeError,
        "segments must be a ClassSegments, got Tensor",
    ),
    "segments of other rows": (
        (F, ClassSegments.uniform(2, 2)),
        {},
        ValueError,
        "segments must describe the 6 rows of the features, got 4 rows",
    ),
    "segments elsewhere": (
        (F, ClassSegments.from_labels(torch.arange(6)).to("meta")),
        {},
        ValueError,
        "segments must be on the device of the features, cpu, got meta",
    ),
    "backend": (
        (F,),
        {"backend": "referense"},
        ValueError,
        "backend must be one of reference, cpp, triton, cuda, got 'referense'; did you mean 'reference'?",
    ),
}
WRONG_CENTRALIZATION = {
    "beta alone": (
        (F,),
        {"beta": 0.5},
        ValueError,
        "beta needs alpha, the exponential form's rate: got beta=0.5 without alpha",
    ),
    "alpha string": ((F,), {"alpha": "0.1"}, TypeError, "alpha must be a number, got str"),
    "alpha truth": ((F,), {"alpha": True}, TypeError, "alpha must be a number, got bool"),
    "alpha nan": ((F,), {"alpha": math.nan}, ValueError, "alpha must be finite, got nan"),
    "beta nothing": ((F,), {"alpha": 1.0, "beta": None}, TypeError, "beta must be a number, got NoneType"),
    "beta infinite": ((F,), {"alpha": 1.0, "beta": math.inf}, ValueError, "beta must be finite, got inf"),
}
WRONG_INFORMATION = {
    f"reduction {value}": (
        (F,),
        {"reduction": value},
        ValueError,
        f"reduction must be one of 'batchmean', 'sum', 'none', got {value!r}",
    )
    for value in ("mean", None)
}
WRONG_FUSED = {
    f"{name} {value}": ((F,), {name: value}, error, message.format(name))
    for name in ("centralization_weight", "cmi_weight")
    for value, error, message in [
        ("1", TypeError, "{} must be a number, got str"),
        (None, TypeError, "{} must be a number, got NoneType"),
        (math.nan, ValueError, "{} must be finite, got nan"),
        (math.inf, ValueError, "{} must be finite, got inf"),
    ]
}
CALLS = [
    pytest.param(function, *case, id=f"{function.__name__}-{name}")
    for function, table in [
        (DF.class_centralization, WRONG | WRONG_CENTRALIZATION),
        (DF.conditional_mutual_information, WRONG | WRONG_INFORMATION),
        (DF.class_complexity, WRONG | WRONG_CENTRALIZATION | WRONG_FUSED),
    ]
    for name, case in table.items()
]


@pytest.mark.parametrize(("function", "arguments", "options", "error", "message"), CALLS)
def test_wrong_arguments_are_named(function, arguments, options, error, message):
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    assert str(caught.value) == message
