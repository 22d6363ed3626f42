"""What a temperature does to a score. Apart from how it is fitted, so that a scoring service loads NumPy only."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dftrack.errors import MetricError

_EDGE = 2.0**-53  # scores are kept this far from 0 and 1, where the logit ends


def apply_temperature(scores: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """P(fake) after dividing the logits by `temperature` > 0: (n,) -> (n,) in (0, 1), in the same order.

    Raises MetricError for a temperature that is not positive. Source: Guo et al. 2017.
    """
    if not temperature > 0:
        raise MetricError(f"a temperature must be positive, got {temperature:g}")
    kept = np.clip(np.asarray(scores, dtype=np.float64), _EDGE, 1 - _EDGE)
    logits = np.log(kept) - np.log1p(-kept)
    sharpened: NDArray[np.float64] = np.exp(-np.logaddexp(0, -logits / temperature))  # 1 / (1 + exp(-logit / T))
    return sharpened
