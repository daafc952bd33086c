"""Commands beside training: the doctor, plans, data inspection with its grading, token tables of any model, publishing."""
