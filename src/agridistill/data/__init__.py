"""Turns photos on the disk into labelled samples, leaf-disjoint splits and batches.

Import from the modules, because only some of them need torch: `labels.read_layout` and `folder.scan` list samples,
`inspection` reads the photos, `prepare.prepare_data` splits them, `check.check` reports problems, `views` draws
augmented views and caches derived files, `loader` makes batches, `datasets.DATASETS` lists the public data sets, and
`fetch.fetch_dataset` downloads them.
"""
