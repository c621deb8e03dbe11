"""Estimators that read a text: the same numbers as scikit-learn's, and the same answers from ONNX Runtime."""

import numpy as np
import onnxruntime
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from pipelines.errors import ConfigError, DataError
from pipelines.estimators import onnx
from pipelines.estimators.families import Running, layout_of
from pipelines.estimators.fitting import Labelled, answers, fit
from pipelines.estimators.words import learn, tokenizer
from pipelines.fields import Binary, Categorical, Fields, Number, Numeric, Text
from pipelines.params import EstimatorParams, WordsParams
from pipelines.text import normalise, pad, tokenise

TEAMS = ("memory", "web", "files")
SAID = (
    ["heap", "buffer", "overflow", "stack", "memory", "corruption", "kernel", "driver", "crash"],
    ["cross", "site", "scripting", "browser", "html", "cookie", "session", "Über", "naïve"],
    ["directory", "traversal", "path", "upload", "archive", "symlink", "filename", "dot_dot"],
)
BETWEEN = ["a", "remote", "attacker", "in", "the", "CVE-2014-0160", "of,", "(via)", "x", "...", "and", "3.1.4", "!!"]
WITHOUT_WORDS = ("", "?? !", "a - b", "\u200b")
"""Texts of which no word is left."""
REPORTS = Fields(case="reports", label="team", classes=TEAMS, fields=(Text("text"),))
URGENT = Fields(case="urgent", label="urgent", target=Binary(), fields=(Text("text"),))
DAYS = Fields(case="days", label="days", target=Number("days", 0.0, 9.0), fields=(Text("text"),))
BESIDE = Fields(
    case="beside",
    label="team",
    classes=TEAMS,
    fields=(Text("text", missing=True), Categorical("source", ("x", "y"), missing=True), Numeric("age", missing=True)),
)
TABLE = Fields(case="table", label="sold", fields=(Numeric("age"),))
CLASSIFIERS = {
    "logistic regression": ("sklearn:LogisticRegression", {"C": 10.0}),
    "descent": ("sklearn:SGDClassifier", {"loss": "log_loss"}),
    "calibrated machine": (
        "sklearn:CalibratedClassifierCV",
        {"estimator": {"family": "sklearn:LinearSVC", "parameters": {}}, "cv": 3},
    ),
    "bayes": ("sklearn:MultinomialNB", {"alpha": 0.1}),
    "forest": ("sklearn:RandomForestClassifier", {"n_estimators": 10}),
    "lightgbm": ("lightgbm", {"n_estimators": 10, "min_child_samples": 3}),
    "xgboost": ("xgboost", {"n_estimators": 10}),
}


def texts(count, seed=0):
    """Texts of three kinds, and which of them each is."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, len(TEAMS), count)
    found = []
    for kind in kinds:
        own, between = rng.choice(SAID[kind], rng.integers(1, 8)), rng.choice(BETWEEN, rng.integers(0, 8))
        found.append(" ".join(rng.permutation([*own, *between])))
    found[: len(WITHOUT_WORDS)] = WITHOUT_WORDS
    return found, kinds


def read(made, read_texts):
    """The tensors of texts."""
    return pad(tokenise(made, read_texts))


def fitted_to(fields, family, parameters, labels=None, beside=None, **reading):
    """A family that is fitted to texts, and their tokenizer."""
    given, kinds = texts(300)
    model = EstimatorParams(kind="estimator", family=family, parameters=parameters, words=reading)
    made = tokenizer(given, model.words)
    tensors = read(made, given) | (beside or {})
    rows = Labelled(tensors, kinds if labels is None else labels(kinds))
    return fit(model, fields, rows, Running(seed=0, threads=1)), made


def session(fitted, fields):
    """What its graph answers for tensors."""
    run = onnxruntime.InferenceSession(onnx.graph(fitted, fields).SerializeToString()).run
    return lambda tensors: run(None, tensors)[0]


def random_ids(made, rows, tokens, seed=0):
    """Ids with holes of padding and unknown words; of the last rows one has nothing else, and one nothing at all."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, made.get_vocab_size(), (rows, tokens))
    ids[rng.random(ids.shape) < 0.3] = 0
    ids[rng.random(ids.shape) < 0.2] = 1
    if rows > 2:
        ids[-2:] = [[1], [0]]
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def columns_of(made, words):
    """The columns by name, as scikit-learn names them."""
    named = [made.id_to_token(int(word)) for word in words.words]
    return named + [" ".join(made.id_to_token(int(word)) for word in pair) for pair in words.pairs]


@pytest.mark.parametrize(("pairs", "min_rows"), [(True, 1), (True, 3), (False, 2)])
def test_weights_are_those_of_scikit_learn(pairs, min_rows):
    """TF-IDF of texts, new ones and such without words among them, is what TfidfVectorizer makes of them."""
    given, _ = texts(200)
    reading = WordsParams(min_rows=min_rows, pairs=pairs)
    made = tokenizer(given, reading)
    words = learn(read(made, given)["input_ids"], reading, weighed=True)
    theirs = TfidfVectorizer(ngram_range=(1, 2 if pairs else 1), min_df=min_rows, sublinear_tf=True)
    theirs.fit(map(normalise, given))
    columns = [theirs.vocabulary_[name] for name in columns_of(made, words)]
    assert sorted(columns) == list(range(len(theirs.vocabulary_)))
    for asked in (given, texts(100, seed=1)[0], ["heap heap heap unheard heap", "unheard"]):
        expected = theirs.transform(map(normalise, asked))[:, columns].toarray()
        assert np.allclose(words.matrix(read(made, asked)["input_ids"]).toarray(), expected, rtol=0, atol=1e-12)


def test_counts_are_those_of_scikit_learn():
    """Trees are given how often each word and pair is there, in whole numbers."""
    given, _ = texts(100)
    made = tokenizer(given, WordsParams())
    words = learn(read(made, given)["input_ids"], WordsParams(), weighed=False)
    theirs = CountVectorizer(ngram_range=(1, 2), vocabulary=columns_of(made, words))
    assert np.array_equal(
        words.matrix(read(made, given)["input_ids"]).toarray(), theirs.transform(map(normalise, given)).toarray()
    )


def test_the_commonest_words_and_pairs_have_the_columns():
    """No word or pair without a column is commoner than one with, and the tokenizer knows no word beyond the most."""
    given, _ = texts(200)
    few = WordsParams(max_words=12)
    made = tokenizer(given, few)
    words = learn(read(made, given)["input_ids"], few, weighed=False)
    theirs = CountVectorizer(ngram_range=(1, 2), min_df=few.min_rows)
    totals = dict(
        zip(
            theirs.fit(map(normalise, given)).get_feature_names_out(),
            theirs.transform(map(normalise, given)).toarray().sum(0),
            strict=True,
        )
    )
    kept = columns_of(made, words)
    assert len(kept) == few.max_words
    assert min(totals[name] for name in kept) >= max(count for name, count in totals.items() if name not in kept)
    assert made.get_vocab_size() == few.max_words + 2


def test_words_of_one_row_fill_no_column_of_others():
    """A word that one text repeats is no common one: it takes the place of none that stands in several texts."""
    given = ["spam " * 50, "heap overflow", "heap overflow", "stack"]
    made = tokenizer(given, WordsParams(max_words=2))
    assert [made.id_to_token(place) for place in range(2, made.get_vocab_size())] == ["heap", "overflow"]


def test_texts_are_cut_in_training_as_in_serving():
    """Words behind the truncation are counted nowhere: not in the vocabulary, and not in a row."""
    reading = WordsParams(max_tokens=2, min_rows=1)
    made = tokenizer(["heap overflow stack", "heap overflow"], reading)
    words = learn(read(made, ["heap overflow stack", "heap overflow"])["input_ids"], reading, weighed=False)
    assert columns_of(made, words) == ["heap", "overflow", "heap overflow"]
    assert read(made, ["overflow heap heap"])["input_ids"].shape == (1, 2)


def test_a_text_without_words_has_one_token_of_padding():
    """No tensor is zero wide, which servers do not take, where all texts of a call have no words."""
    made = tokenizer(["heap overflow"] * 2, WordsParams())
    assert read(made, ["??", ""])["input_ids"].tolist() == [[0], [0]]


def test_texts_without_common_words_are_refused():
    """The error says what was looked for, and where to change it."""
    with pytest.raises(DataError, match=r"no word stands in 2 of the 2 training texts.*min_rows"):
        tokenizer(["heap", "stack"], WordsParams())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_graph_answers_what_the_estimator_answers(name):
    """Within 1e-5 on random ids of one row and of many, of unknown words, of nothing, and on the training rows."""
    fitted, made = fitted_to(REPORTS, *CLASSIFIERS[name])
    answered = session(fitted, REPORTS)
    shapes = [(1, 1), (1, 30), (3, 1), (64, 12), (257, 5)]
    batches = [random_ids(made, *shape, seed=seed) for seed, shape in enumerate(shapes)]
    spread = []
    for tensors in (*batches, read(made, texts(300)[0])):
        expected = answers(fitted, tensors)
        assert np.abs(answered(tensors) - expected).max() <= 1e-5
        spread.append(np.ptp(expected, axis=0).max())
    assert max(spread) > 0.2


@pytest.mark.parametrize(
    ("fields", "family", "labels"),
    [
        (URGENT, "sklearn:LogisticRegression", lambda kinds: (kinds == 0).astype(np.int64)),
        (URGENT, "lightgbm", lambda kinds: (kinds == 0).astype(np.int64)),
        (DAYS, "sklearn:Ridge", lambda kinds: kinds * 4.0),
        (DAYS, "lightgbm", lambda kinds: kinds * 4.0),
        (REPORTS, "sklearn:LogisticRegression", lambda kinds: np.minimum(kinds, 1)),
    ],
    ids=["binary", "binary, trees", "number", "number, trees", "class without rows"],
)
def test_every_target_has_its_answers(fields, family, labels):
    """Answers agree for a binary label, a number within its bounds, and classes of which one has no rows."""
    fitted, made = fitted_to(fields, family, {}, labels)
    tensors = random_ids(made, 64, 12)
    answered = session(fitted, fields)(tensors)
    assert answered.shape == (64, fields.outputs)
    assert np.abs(answered - answers(fitted, tensors)).max() <= 1e-5 * (9.0 if fields is DAYS else 1.0)


@pytest.mark.parametrize("family", ["sklearn:LogisticRegression", "lightgbm", "xgboost"])
def test_a_table_may_stand_beside_the_text(family):
    """Categories, and numbers with holes, are columns behind the words."""
    rng = np.random.default_rng(0)

    def table(rows):
        age = rng.normal(50.0, 20.0, (rows, 1)).astype(np.float32)
        age[rng.random((rows, 1)) < 0.3] = np.nan
        return {"categorical": rng.integers(0, 3, (rows, 1)), "numeric": age}

    fitted, made = fitted_to(BESIDE, family, {}, beside=table(300))
    assert fitted.design.columns == fitted.design.words.columns + 3 + 2
    tensors = random_ids(made, 64, 12) | table(64)
    assert np.abs(session(fitted, BESIDE)(tensors) - answers(fitted, tensors)).max() <= 1e-5


def test_without_pairs_the_graph_knows_words_alone():
    """A declaration without pairs has a graph, too."""
    fitted, made = fitted_to(REPORTS, "sklearn:LogisticRegression", {}, pairs=False)
    assert len(fitted.design.words.pairs) == 0
    tensors = random_ids(made, 64, 12)
    assert np.abs(session(fitted, REPORTS)(tensors) - answers(fitted, tensors)).max() <= 1e-5


@pytest.mark.parametrize("family", ["sklearn:LogisticRegression", "lightgbm"])
def test_equal_rows_give_equal_bytes(family):
    """The tokenizer's file and the graph are a function of the rows; the order of equally common words is fixed."""
    (one, made), (other, again) = (fitted_to(REPORTS, family, {"random_state": 1}) for _ in range(2))
    assert made.to_str() == again.to_str()
    assert onnx.learned_sha256(one, REPORTS) == onnx.learned_sha256(other, REPORTS)


def test_a_family_that_takes_no_sparse_rows_is_refused():
    """The error says so, and which families read a text."""
    with pytest.raises(ConfigError, match=r"HistGradientBoostingClassifier takes no sparse rows.*lightgbm"):
        fitted_to(REPORTS, "sklearn:HistGradientBoostingClassifier", {})


@pytest.mark.parametrize(("fields", "layout"), [(REPORTS, "linear"), (TABLE, "words")], ids=["text", "table"])
def test_a_layout_has_a_place_for_the_text(fields, layout):
    """A layout that would leave the text out, or look for one that is not there, is refused."""
    model = EstimatorParams(kind="estimator", family="sklearn:LogisticRegression", layout=layout)
    with pytest.raises(ConfigError, match=rf"layout: {layout} does not suit {fields.case}"):
        layout_of(model, fields)
