"""Running a model, without torch: photos in, labels with probabilities out.

predictor (`Predictor`, `Prediction`, `Explanation`), verdict (quality gate, familiarity, words), reading (photos to
batches), explanation (where a model looked), backends (models by path or name, and their engines).
"""
