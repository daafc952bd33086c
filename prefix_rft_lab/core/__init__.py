"""What every layer uses and nothing of the method: configuration, types, keyed randomness, errors, files, the Hub's manners."""
