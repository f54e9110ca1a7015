"""Running a model, without torch: photos in, labels with probabilities out.

predictor (`Predictor`, `Prediction`, `Explanation`), verdict (quality gate, familiarity, words), reading (photos to
batches), explanation (where a model looked), shipped (models by name), backends (one module an engine).
"""
