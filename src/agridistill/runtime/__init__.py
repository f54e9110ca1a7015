"""Runs a model without torch: takes photos and returns labels with probabilities.

`predictor` holds `Predictor`; `verdict` the quality gate, familiarity and the words for predictions; `reading` turns
photos into batches; `explanation` shows where a model looked; `backends` opens models by path or name.
"""
