"""The kit's methods, one file each, in the order in which figures show them; :mod:`prefix_rft_lab.algorithm.stages` says what a
method is made of. A method of yours needs no file here: ``METHODS["mine"] = Method(...)``."""

# isort: off
import prefix_rft_lab.algorithm.methods.base
from prefix_rft_lab.algorithm.methods.sft import SFT
from prefix_rft_lab.algorithm.methods.rft import RFT
import prefix_rft_lab.algorithm.methods.sft_then_rft  # noqa: F401
from prefix_rft_lab.algorithm.methods.prefix_rft import PREFIX_RFT
from prefix_rft_lab.algorithm.methods.rl_sft_loss import RL_SFT_LOSS
from prefix_rft_lab.algorithm.methods.luffy import LUFFY
from prefix_rft_lab.algorithm.methods.relift import RELIFT
from prefix_rft_lab.algorithm.methods.uft import UFT
from prefix_rft_lab.algorithm.methods.dr_po import DR_PO
from prefix_rft_lab.algorithm.methods.rft_clip import RFT_CLIP
from prefix_rft_lab.algorithm.methods.dft import DFT
from prefix_rft_lab.algorithm.methods.hpt import HPT
from prefix_rft_lab.algorithm.methods.chord import CHORD_MU, CHORD_PHI
from prefix_rft_lab.algorithm.methods.trapo import TRAPO
from prefix_rft_lab.algorithm.methods.dynamic import DYNAMIC

# isort: on
from prefix_rft_lab.algorithm.methods.prefix_rft import PREFIX_LOSSES
from prefix_rft_lab.algorithm.stages import (
    METHODS,
    ByStep,
    Method,
    NegativeLogLikelihood,
    PolicyGradient,
    Replay,
    ShapedDemonstration,
    Stage,
    TokenInputs,
    TokenLoss,
    TokenLosses,
    Window,
    check,
    get,
    register,
)

__all__ = [
    "CHORD_MU",
    "CHORD_PHI",
    "DFT",
    "DR_PO",
    "DYNAMIC",
    "HPT",
    "LUFFY",
    "METHODS",
    "PREFIX_LOSSES",
    "PREFIX_RFT",
    "RELIFT",
    "RFT",
    "RFT_CLIP",
    "RL_SFT_LOSS",
    "SFT",
    "TRAPO",
    "UFT",
    "ByStep",
    "Method",
    "NegativeLogLikelihood",
    "PolicyGradient",
    "Replay",
    "ShapedDemonstration",
    "Stage",
    "TokenInputs",
    "TokenLoss",
    "TokenLosses",
    "Window",
    "check",
    "get",
    "register",
]
