"""Commands beside training: the doctor, plans, data inspection, grading, token tables of any model, publishing."""
