"""Columns of arrow tables as numpy arrays: the values of Arrow's own conversion, without its pandas."""

import numpy as np
import pyarrow as pa
import pytest

from robustdup.records.columns import numbers, texts


@pytest.mark.parametrize("kind", [pa.int64(), pa.int32(), pa.float64(), pa.float32()])
@pytest.mark.parametrize("values", [[3, 1, 2], [3, None, 2], [None, None, None], []])
@pytest.mark.parametrize("cut", [0, 1])
def test_numbers_are_those_of_arrow(kind, values, cut):
    table = pa.table({"x": pa.chunked_array([pa.array(values, kind), pa.array([7, None], kind)])}).slice(cut)
    true = table["x"].to_numpy()
    assert np.array_equal(numbers(table, "x"), true, equal_nan=True)
    part = pa.table({"x": pa.array([None, *values, None, 4], kind)}).slice(cut + 1)  # one piece that begins further on
    assert np.array_equal(numbers(part, "x"), part["x"].to_numpy(), equal_nan=True)
    whole = pa.table({"x": pa.array([5, 6], kind)})
    assert numbers(whole, "x").dtype == whole["x"].to_numpy().dtype


@pytest.mark.parametrize("coded", [False, True])
def test_texts_are_those_of_arrow(coded):
    words = pa.array(["b", None, "a", "b", ""])
    parts = [words, pa.array(["é" * 70, "a"])]
    column = pa.chunked_array([part.dictionary_encode() for part in parts] if coded else parts)
    table = pa.table({"x": column.unify_dictionaries() if coded else column}).slice(1)
    true = ["", "a", "b", "", "é" * 70, "a"]
    found = texts(table, "x")
    assert found.at().tolist() == true
    assert found.at(np.array([4, 0])).tolist() == ["é" * 70, ""]
    assert found.where(lambda word: word == "a").tolist() == [word == "a" for word in true]
    assert found.where(lambda word: not word).tolist() == [not word for word in true]


def test_what_holds_something_else_is_refused():
    table = pa.table({"words": ["a"], "numbers": [1], "nothing": pa.nulls(1)})
    with pytest.raises(TypeError, match="holds no text"):
        texts(table, "numbers")
    with pytest.raises(TypeError, match="holds no numbers"):
        numbers(table, "words")
    with pytest.raises(KeyError):
        texts(table, "other")
    assert np.isnan(numbers(table, "nothing")).all()
    assert texts(table, "nothing").at().tolist() == [""]
