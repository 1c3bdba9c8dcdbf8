"""Evaluation: attacks in order on the survivors, judged by the referee; and the conformance test of an attack."""
