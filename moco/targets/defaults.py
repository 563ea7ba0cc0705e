"""Default settings of the search for targets."""

DIM = 128
TEMPERATURE = 0.07
EVALUATIONS = 600  # of L-BFGS; 1000 points in R^128 have almost converged by then
RELEASE_STEPS = 10_000  # of Adam, as in the authors' code
