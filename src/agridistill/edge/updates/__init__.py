"""Signed model updates: `release` (signatures), `prepare` (download and test on the device), `slots` (storage).

`Updater` installs a release with them, `UpdateWorker` runs it in a thread of the agent, and `publish` creates releases.
A device can use the old or the new model at any moment of an update, even after a power cut.
"""
