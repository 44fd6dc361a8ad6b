"""Results joined by lineage into a page to decide from."""
