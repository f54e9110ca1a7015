"""Experiments of several runs: `plan` describes them, `compare` and `search` train them in `workers`, `summary` with
`statistics` compares them. Import from these modules: this package itself loads neither torch nor Optuna.
"""
