"""From result files to one page that opens anywhere; reads JSON only, and knows no model."""
