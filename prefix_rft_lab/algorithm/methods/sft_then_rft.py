"""SFT, then RFT from its weights with a fresh optimizer."""

from __future__ import annotations

from prefix_rft_lab.algorithm.methods.rft import RFT
from prefix_rft_lab.algorithm.methods.sft import SFT
from prefix_rft_lab.algorithm.stages import METHODS, Method

METHODS["sft_then_rft"] = Method(title="SFT→RFT", stages=(SFT, RFT))
