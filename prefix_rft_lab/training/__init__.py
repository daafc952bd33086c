"""One run: the loop, an update, what is measured and recorded at each step, checkpoints, evaluation."""
