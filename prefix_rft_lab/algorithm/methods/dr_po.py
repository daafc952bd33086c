"""DR-PO style: all rows of a problem continue one prefix, which is not in the loss."""

from __future__ import annotations

from prefix_rft_lab.algorithm import prefixes
from prefix_rft_lab.algorithm.stages import METHODS, Method, PolicyGradient, Stage
from prefix_rft_lab.core.types import TokenKind

DR_PO = Stage(
    name="dr_po",
    rows=prefixes.shared_prefix_rows,
    losses=lambda config: {TokenKind.ON_POLICY: PolicyGradient(), TokenKind.CONTINUATION: PolicyGradient()},
    demonstrations="used",
    prefix_schedule=True,
    optim="rl",
)
METHODS["dr_po"] = Method(title="DR-PO style", stages=(DR_PO,))
