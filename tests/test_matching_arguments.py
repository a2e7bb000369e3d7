"""What the matching losses say of wrong arguments."""

import pytest
import torch

import ddfast.functional as DF
from ddfast import ClassMoments, ClassSegments

R, S = torch.randn(6, 3, 4, 2), torch.randn(4, 3, 4, 2)
M = ClassMoments.from_features(R)
TWO = ClassSegments.uniform(2, 2)
FLOATS = "must be float32, float64, bfloat16 or float16, got torch.int64"
SHAPES = "must have shape (N, C, H, W), (N, C, P) or (N, E), got"

WRONG = {
    "real array": ((R.numpy(), S), {}, TypeError, "real must be a tensor, got ndarray"),
    "real integers": ((R.long(), S), {}, TypeError, f"real {FLOATS}"),
    "real scalar rows": ((R[:, 0, 0, 0], S), {}, ValueError, f"real {SHAPES} (6,)"),
    "real videos": ((R[None], S), {}, ValueError, f"real {SHAPES} (1, 6, 3, 4, 2)"),
    "syn list": ((R, [S]), {}, TypeError, "syn must be a tensor, got list"),
    "syn moments": ((R, M), {}, TypeError, "syn must be a tensor, got ClassMoments"),
    "syn integers": ((R, S.long()), {}, TypeError, f"syn {FLOATS}"),
    "syn scalar rows": ((R, S[:, 0, 0, 0]), {}, ValueError, f"syn {SHAPES} (4,)"),
    "syn videos": ((R, S[None]), {}, ValueError, f"syn {SHAPES} (1, 4, 3, 4, 2)"),
    "dtypes": (
        (R, S.double()),
        {},
        TypeError,
        "syn must have the dtype of real, torch.float32, got torch.float64",
    ),
    "devices": (
        (R, torch.empty(4, 3, 4, 2, device="meta")),
        {},
        ValueError,
        "syn must be on the device of real, cpu, got meta",
    ),
    "shapes": (
        (R, S[:, :2]),
        {},
        ValueError,
        "syn must have the feature shape of real, (3, 4, 2), got (2, 4, 2)",
    ),
    "ranks": (
        (R, S.flatten(2)),
        {},
        ValueError,
        "syn must have the feature shape of real, (3, 4, 2), got (3, 8)",
    ),
    "labels for real_segments": (
        (R, S, torch.zeros(6)),
        {},
        TypeError,
        "real_segments must be a ClassSegments, got Tensor",
    ),
    "labels for syn_segments": (
        (R, S, None, [0, 0, 1, 1]),
        {},
        TypeError,
        "syn_segments must be a ClassSegments, got list",
    ),
    "real_segments of other rows": (
        (R, S, TWO, TWO),
        {},
        ValueError,
        "real_segments must describe the 6 rows of the features, got 4 rows",
    ),
    "syn_segments of other rows": (
        (R, S, ClassSegments.uniform(2, 3), ClassSegments.uniform(2, 3)),
        {},
        ValueError,
        "syn_segments must describe the 4 rows of the features, got 6 rows",
    ),
    "real_segments elsewhere": (
        (R, S, ClassSegments.from_labels(torch.arange(6) % 2).to("meta"), TWO),
        {},
        ValueError,
        "real_segments must be on the device of the features, cpu, got meta",
    ),
    "syn_segments elsewhere": (
        (R, S, None, ClassSegments.from_labels(torch.arange(4) % 2).to("meta")),
        {},
        ValueError,
        "syn_segments must be on the device of the features, cpu, got meta",
    ),
    "classes": (
        (R, S, ClassSegments.uniform(3, 2), TWO),
        {},
        ValueError,
        "syn_segments must have the 3 classes of real_segments, got 2",
    ),
    "segments of one side": (
        (R, S, None, TWO),
        {},
        ValueError,
        "syn_segments must have the 1 classes of real_segments, got 2",
    ),
    "real_segments with moments": (
        (M, S, ClassSegments.uniform(1, 6)),
        {},
        ValueError,
        "real_segments must be None where real is a ClassMoments, which knows its classes",
    ),
    "moments elsewhere": ((M.to("meta"), S), {}, ValueError, "syn must be on the device of real, meta, got cpu"),
    "moments of other features": (
        (M, S[:, :2]),
        {},
        ValueError,
        "syn must have the features of real, (3, 8), got (2, 8)",
    ),
    "moments of other classes": (
        (M, S, None, TWO),
        {},
        ValueError,
        "syn_segments must have the 1 classes of real, got 2",
    ),
    "backend": (
        (R, S),
        {"backend": "trition"},
        ValueError,
        "backend must be one of reference, cpp, triton, cuda, got 'trition'; did you mean 'triton'?",
    ),
    "backend of another type": (
        (R, S),
        {"backend": 3},
        ValueError,
        "backend must be one of reference, cpp, triton, cuda, got 3",
    ),
}
WRONG_COVARIANCE = {
    "local": ((R, S), {"local": "row"}, ValueError, "local must be one of 'channels', 'rows', got 'row'"),
    "no local": ((R, S), {"local": None}, ValueError, "local must be one of 'channels', 'rows', got None"),
    "precision": (
        (R, S),
        {"precision": "high"},
        ValueError,
        "precision must be one of None, 'tf32', got 'high'",
    ),
    "rows of real vectors": (
        (R.flatten(2), S),
        {"local": "rows"},
        ValueError,
        'real must have shape (N, C, H, W) for local="rows", got (6, 3, 8)',
    ),
    "rows of syn vectors": (
        (R, S.flatten(1)),
        {"local": "rows"},
        ValueError,
        'syn must have shape (N, C, H, W) for local="rows", got (4, 24)',
    ),
    "moments of another local": (
        (M, S),
        {"local": "rows"},
        ValueError,
        'real must have been computed with local="rows", got moments of local="channels"',
    ),
}
WRONG_FUSED = {
    f"{name} {value}": ((R, S), {name: value}, error, message.format(name))
    for name in ("mean_weight", "covariance_weight")
    for value, error, message in [
        ("1", TypeError, "{} must be a number, got str"),
        (None, TypeError, "{} must be a number, got NoneType"),
        (True, TypeError, "{} must be a number, got bool"),
        (torch.nan, ValueError, "{} must be finite, got nan"),
        (-torch.inf, ValueError, "{} must be finite, got -inf"),
    ]
}
CALLS = [
    pytest.param(function, *case, id=f"{function.__name__}-{name}")
    for function, table in [
        (DF.distribution_matching, WRONG),
        (DF.covariance_matching, WRONG | WRONG_COVARIANCE),
        (DF.moment_matching, WRONG | WRONG_COVARIANCE | WRONG_FUSED),
    ]
    for name, case in table.items()
]


@pytest.mark.parametrize(("function", "arguments", "options", "error", "message"), CALLS)
def test_wrong_arguments_are_named(function, arguments, options, error, message):
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    assert str(caught.value) == message
