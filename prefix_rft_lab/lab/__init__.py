"""What one does with a finished run beside reading it: perform its steps again, otherwise. Nothing here trains a run."""
