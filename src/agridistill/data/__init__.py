"""Photos on disk -> samples, checks, leaf-disjoint splits and batches."""
