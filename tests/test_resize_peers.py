"""Against the resizes of PyTorch and ONNX, where they are installed."""

import numpy as np
import pytest
from cases import each

from tconvjax._ops.sampling import Ratio, Rule, taps


def matrix(n, m, rule, scale=None):
    index, weights = taps(n, Ratio(m, scale), rule)
    result = np.zeros((m, n))
    for i, w in zip(index.T, weights.T, strict=True):
        np.add.at(result, (np.arange(m), i), w)
    return result


CUBIC = Rule("cubic", antialias=False, exclude_outside=False, cubic_coeff_a=-0.75)
TORCH = {
    ("nearest", None, False): Rule("nearest", half_pixel_centers=False, nearest_mode="floor"),
    ("nearest-exact", None, False): Rule("nearest"),
    ("area", None, False): Rule("area"),
    ("bilinear", False, False): Rule("linear", antialias=False),
    ("bilinear", True, False): Rule("linear", antialias=False, align_corners=True),
    ("bicubic", False, False): CUBIC,
    ("bicubic", True, False): CUBIC._replace(align_corners=True),
    ("bilinear", False, True): Rule("linear"),
    ("bicubic", False, True): Rule("cubic"),
}


@each("mode", TORCH)
def test_weights_are_those_of_torch(mode):
    torch = pytest.importorskip("torch", reason="a peer that CI does not install")
    interpolate, rule = torch.nn.functional.interpolate, TORCH[mode]
    options = dict(zip(("mode", "align_corners", "antialias"), mode, strict=True))

    def theirs(n, **size):
        impulses = torch.eye(n, dtype=torch.float64)[:, None, :, None].expand(-1, -1, -1, 3)
        return interpolate(impulses, **size, **options)[:, 0, :, 1].numpy().T

    for n in (1, 2, 5, 13, 44):
        for m in (1, 2, 7, 26, 89):
            want = theirs(n, size=(m, 3))
            np.testing.assert_allclose(matrix(n, m, rule), want, rtol=0, atol=1e-13)
    if mode[2]:
        return
    for n in (5, 13, 44):
        for scale in (0.3, 0.6, 1.3, 2.5):
            want = theirs(n, scale_factor=(scale, 1.0))
            kept = None if mode[0] == "area" else scale
            got = matrix(n, len(want), rule, kept)
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)
            want = theirs(n, scale_factor=(scale, 1.0), recompute_scale_factor=True)
            np.testing.assert_allclose(matrix(n, len(want), rule), want, rtol=0, atol=1e-13)
