"""What the reverse chain over kept levels asks of a student: the weights of the variational bound."""

from __future__ import annotations

import torch
from torch import Tensor

from onefold.errors import UserError


def elbo_weights(sigmas: Tensor) -> Tensor:
    """w_t on the squared error of x0 at levels sigma_1 < ... < sigma_T', the last possibly inf; float64.

    With SNR = 1 / sigma^2 the KL of the posteriors q(x_(t-1) | x_t, x0) of two x0 has w_t = (SNR_(t-1) - SNR_t) / 2. At
    t = 1 the posterior is a point; a decoder of variance 1 - A_1, A = SNR / (1 + SNR), has w_1 = 1 / (2 (1 - A_1)).
    """
    if sigmas.dtype != torch.float64 or not bool((sigmas.diff() > 0).all()) or not bool((sigmas > 0).all()):
        raise UserError("weights of the bound need float64 levels that rise from above 0; turn the grid's levels round")
    snr = sigmas**-2
    return torch.cat([1 + snr[:1], -snr.diff()]) / 2
