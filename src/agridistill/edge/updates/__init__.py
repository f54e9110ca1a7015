"""Signed model updates: `release` (signatures), `fetch`, `golden` (a trial on the device), `slots` (which model runs).

`Updater` connects them and `UpdateWorker` runs it beside the agent; `publish` creates releases. A device always has the
old or the new model, never none.
"""
