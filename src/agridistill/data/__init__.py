"""Photos on disk -> samples, checks, leaf-disjoint splits and batches.

Import from the modules, so that settings need no torch: `labels.read_layout` and `folder.scan` list samples,
`inspection` reads the photos, `prepare.prepare_data` splits them, `check.check` reports what is wrong, `loader` makes
batches of the `views`, `cache` keeps derived files, and `datasets.DATASETS` lists the public data sets.
"""
