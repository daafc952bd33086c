"""Problems and whether a response solves one: readers, the embedded world and its base policy, answers, the verifier."""
