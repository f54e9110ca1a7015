"""Trains a network on a data folder and writes a finished run folder.

`settings` defines the sections of a recipe, and `defaults` chooses values for the photos and the hardware. `run` checks
the arguments and prepares the data, `parts` creates network, teacher and objective, and `fit` trains them with the
classes in `module`, `callbacks` and `trainer` and completes the `run_folder`.
"""
