"""When people are warned: leaves pooled over a window, rules, and the life of an alert."""
