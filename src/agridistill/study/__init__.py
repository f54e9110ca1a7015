"""Experiments of several runs: `plan` describes them, `compare` and `search` train them in `workers`, and `summary`
compares the results. Import from these modules; importing the package loads neither torch nor Optuna.
"""
