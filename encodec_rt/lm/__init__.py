"""Language models of codes: ours, exact on every machine, and the paper's, in floating point."""
