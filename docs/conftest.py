"""The Python snippets of the documentation run, page by page, each page in a folder and a namespace of its own."""

from __future__ import annotations

from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

pytest_collect_file = Sybil(
    parsers=[CodeBlockParser(language="python", evaluator=PythonEvaluator())], patterns=["*.md"]
).pytest()
