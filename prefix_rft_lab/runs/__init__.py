"""Run directories: what a run leaves, written so that a kill loses nothing, read as DataFrames; mirrors of it elsewhere."""

from prefix_rft_lab.core.errors import RunClaimedError, RunDivergedError, RunError
from prefix_rft_lab.runs.run import FOLLOWED, TOKEN_COLUMNS, Run, by_method, directory_of, load, load_all

__all__ = [
    "FOLLOWED",
    "TOKEN_COLUMNS",
    "Run",
    "RunClaimedError",
    "RunDivergedError",
    "RunError",
    "by_method",
    "directory_of",
    "load",
    "load_all",
]
