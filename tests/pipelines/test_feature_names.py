"""pipelines/feature_names.py: one grammar for the names that profiles measure under."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import feature_names
from pipelines.feature_names import BY_VERSION, COUNTED, SHARES, Feature, read

FEATURES = [
    *(Feature(name, version=version) for name in BY_VERSION for version in (None, 0, 3, 12)),
    *(Feature("text", counted) for counted in ("", *COUNTED)),
    *(Feature("gust", share) for share in SHARES),
]


@pytest.mark.parametrize("feature", FEATURES, ids=str)
def test_what_is_made_is_read(feature):
    """Each form of the grammar is read as what it was made of."""
    assert read(str(feature)) == feature


def test_the_makers_make_the_names_of_the_grammar():
    """A text's names, and an output's with its version, are spelled as profiles on disk have them."""
    text = [*(make("t") for make in (feature_names.words, feature_names.tokens, feature_names.unknown))]
    assert text == ["t.words", "t.tokens", "t.unknown"]
    assert feature_names.projections("t") == tuple(f"t.projection{number}" for number in range(1, 9))
    served = [feature_names.served(name, 7) for name in ("score", "prediction", "entropy", "age", "t.words")]
    assert served == ["score@7", "prediction@7", "entropy@7", "age", "t.words"]
    assert feature_names.served("score", None) == "score"
    assert (feature_names.missing_share("gust"), feature_names.other_share("gust")) == ("gust.missing", "gust.other")


@pytest.mark.parametrize("name", ["age@3", "score@", "score@new", "score@03", "text.tokens@3", "a.b", ".words", ""])
def test_another_form_is_a_name_as_a_whole(name):
    """What is not of the grammar is neither an output nor counted of a text."""
    assert read(name) == Feature(name)
    assert not feature_names.is_output(name)
    assert not feature_names.shown_only(name)


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("score@.tokn12\n"), max_size=14))
def test_nothing_of_a_name_is_lost(name):
    """Every text is the name of what it is read as."""
    assert str(read(name)) == name
