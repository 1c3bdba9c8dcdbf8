"""Positional words of a command: one file, KEY=VALUE, and what people write in their place."""

import pytest

from robustdup.cli.flags import split_words
from tests.raising import raises


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["2/255", "4/255"], "--eps 2/255,4/255,8/255"),  # eval --eps 1/255 2/255 4/255
        (["0.5", "1"], "commas"),
        (["2/255"], "commas"),
        (["a.yaml", "b.yaml"], "'b.yaml' is neither KEY=VALUE nor the only configuration file"),
    ],
)
def test_a_second_word_that_stands_alone_is_explained(words, told):
    with raises("two-files") as caught:
        split_words(words)
    assert told in str(caught.value)
