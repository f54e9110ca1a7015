"""Experiments of several runs: `plan` describes them, `compare` and `search` train them in `workers`, and `summary`
compares them. Import from these modules: this package itself loads neither torch nor Optuna.
"""
