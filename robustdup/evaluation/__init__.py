"""Evaluation: attacks in order on the samples that are left, judged by the referee."""
