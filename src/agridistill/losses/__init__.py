"""What the student learns from: the labels, the teacher's class probabilities and the teacher's attention."""
