"""Duplication: plans, schemes, near copies, and datasets with duplicates, written or in memory."""
