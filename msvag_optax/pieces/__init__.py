"""The pieces: weightings, quantities, running averages, formulas, and what puts them together."""
