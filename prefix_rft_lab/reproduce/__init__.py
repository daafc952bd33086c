"""Notebooks run headlessly, and everything that one command of reproduction does."""
