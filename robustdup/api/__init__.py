"""The verbs of a user: load, attack, evaluate, train, duplicate, find duplicates, rank, compare, verify.

They are imported from `robustdup` itself.
"""
