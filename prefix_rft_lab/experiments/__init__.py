"""Many runs: sweeps, profiles, a pool of processes, evaluation of finished policies."""

from prefix_rft_lab.experiments.profiles import PROFILES, profile

__all__ = ["PROFILES", "profile"]
