"""From a data folder to a finished run folder.

`settings` are the sections of a recipe, `defaults` chooses them by photos and hardware. `run` checks and prepares,
`parts` builds network, teacher and objective, `fit` trains them with the `module`, `start` and `trainer`, and completes
the `run_folder`.
"""
