"""Numbers from finished runs: statistics, token tables, the paper's claims. Reads run directories only."""
