"""How good samples are: scores, the features that they are computed from, and whether training data were copied."""
