"""Signed model updates: `release` (signatures), `fetch` (download), `golden` (test on the device), `slots` (storage).

`Updater` installs a release with them, `UpdateWorker` runs it in a thread of the agent, and `publish` creates releases.
At every moment a device can use either the old or the new model.
"""
