"""Runs a model without torch: takes photos and returns labels with probabilities.

`predictor` reads photos and predicts them; `verdict` judges how reliable a prediction is; `explanation` shows where a
model looked; `backends` opens models by path or name; `engines` are the libraries that run exported files.
"""
