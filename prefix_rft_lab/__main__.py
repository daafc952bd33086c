"""``python -m prefix_rft_lab`` is ``prefix-rft``."""

from prefix_rft_lab.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
