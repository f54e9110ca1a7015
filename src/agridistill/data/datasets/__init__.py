"""Public data sets that `data fetch` downloads, and the drawn leaves of the demo."""
