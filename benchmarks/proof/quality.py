"""Does fine-tuning pay? The text encoder of `triage` against TF-IDF with logistic regression, on later reports.

Three windows, each ending on a 1 October: a model made on that day knows the reports of the 365 days before, but for
the newest 30 days, whose labels have not arrived, and at most 5,000 of them. It is judged on the 60 days that
follow. Opponents learn from the same rows: three regressions on TF-IDF (words, characters, both; their strength
chosen on the newest fifth of the rows), and a regression on the encoder's untouched embeddings. `make proof-quality`

Every finished cell is kept under runs/proof-quality, so that an interrupted proof goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.record import goal, record
from pipelines.cases import load_fields, part
from pipelines.contracts import Window
from pipelines.files import write_atomic
from pipelines.measures import confusion, macro_f1, row_errors, row_log_loss
from pipelines.params import Params, TextModelParams
from pipelines.params_file import load_params
from pipelines.settings import read_settings
from pipelines.storage import digest

CASE = "triage"
AS_OF = tuple(datetime(year, 10, 1, tzinfo=UTC) for year in (2014, 2015, 2016))
SEEDS = (0, 1, 2)
WINDOW = timedelta(days=365)
AFTER = timedelta(days=60)
MAX_ROWS = 5_000
TFIDF = ("words", "characters", "both")
EMBEDDING = "embedding"
TRANSFORMER = "transformer"
STRENGTHS = (1.0, 3.0, 10.0, 30.0)
TRAIN = {"epochs": 1, "learning_rate": 0.0002, "threads": 1, "checkpoint_every": None, "budget_minutes": None}
"""What differs from the case's params.yaml, to keep a training at two minutes.

One pass instead of two, at twice the rate.
"""
KEPT = Path("runs/proof-quality")

Scores = NDArray[np.float64]
Cell = dict[str, Any]


def main() -> None:
    """Compute the cells that are missing, and write benchmarks/results/proof-quality.json once all are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=None, metavar="N", help="compute at most N missing cells and stop")
    most = parser.parse_args().cells
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    params = load_params(CASE)
    params = params.model_copy(update={"train": params.train.model_copy(update=TRAIN)})
    cells: list[Cell] = []
    for arm, as_of, seed in grid():
        path = KEPT / f"{digest([arm, as_of.isoformat(), seed, *declared(arm, params)])[:16]}.json"
        if not path.exists():
            if most == 0:
                print("stopped: run it again for the rest")
                return
            most = None if most is None else most - 1
            write_atomic(path, json.dumps(measure(arm, as_of, seed, params)).encode())
        cells.append(json.loads(path.read_text()))
        print({name: value for name, value in cells[-1].items() if name != "chosen"}, flush=True)
    rows, goals = summary(cells)
    record(
        "proof-quality",
        rows=rows,
        goals=goals,
        seconds=sum(cell["seconds"] for cell in cells),
        packages=("torch", "transformers", "scikit-learn"),
    )


def grid() -> Iterator[tuple[str, datetime, int]]:
    """Every cell: arm, day, seed. The regressions have no seed."""
    for as_of in AS_OF:
        for arm in (*TFIDF, EMBEDDING):
            yield arm, as_of, 0
        for seed in SEEDS:
            yield TRANSFORMER, as_of, seed


def declared(arm: str, params: Params) -> list[Any]:
    """What the result of an arm depends on, beside its rows."""
    shared = [MAX_ROWS, WINDOW.days, AFTER.days, params.label_delay_days]
    if arm in TFIDF:
        return [*shared, *STRENGTHS]
    return [*shared, params.model.model_dump(mode="json"), params.train.model_dump(mode="json")]


def measure(arm: str, as_of: datetime, seed: int, params: Params) -> Cell:
    """One model, made on ``as_of`` and judged on the days after it."""
    source = part(CASE, "source")
    found = source.resolve(read_settings(), params)
    train = source.rows(
        found, Window(start=as_of - WINDOW, end=as_of - timedelta(days=params.label_delay_days)), params
    )
    if train.height > MAX_ROWS:
        train = train[np.linspace(0, train.height - 1, MAX_ROWS).round().astype(int).tolist()]
    test = source.rows(found, Window(start=as_of, end=as_of + AFTER), params)
    fit: Callable[[], tuple[Scores, Any]] = {
        EMBEDDING: lambda: by_embedding(train, test, params),
        TRANSFORMER: lambda: by_transformer(train, test, params, seed),
    }.get(arm, lambda: by_tfidf(arm, train, test))
    began = time.perf_counter()
    scores, chosen = fit()
    seconds = round(time.perf_counter() - began, 1)
    about = {"as_of": f"{as_of:%Y-%m-%d}", "arm": arm, "seed": seed, "rows": train.height, "test": test.height}
    return {**about, **metrics(test["team"].to_numpy(), scores), "seconds": seconds, "chosen": chosen}


def metrics(labels: NDArray[np.int8], scores: Scores) -> dict[str, float]:
    """Macro-F1 over the classes that the labels hold, accuracy, log-loss."""
    return {
        "macro_f1": round(macro_f1(confusion(labels, scores)), 4),
        "accuracy": round(float((~row_errors(labels, scores)).mean()), 4),
        "log_loss": round(float(row_log_loss(labels, scores).mean()), 4),
    }


def by_tfidf(kind: str, train: pl.DataFrame, test: pl.DataFrame) -> tuple[Scores, Any]:
    """Logistic regression on TF-IDF.

    Its strength and class weights are those with the best macro-F1 on the newest fifth.
    """
    from sklearn.linear_model import LogisticRegression

    texts = train["text"].to_list()
    labels = train["team"].to_numpy()
    cut = int(len(texts) * 0.8)
    inner = vectors(kind)
    older = inner.fit_transform(texts[:cut])
    newer = inner.transform(texts[cut:])

    def regression(strength: float, weights: str | None) -> Any:
        return LogisticRegression(C=strength, class_weight=weights, max_iter=300, tol=1e-3)

    def judged(choice: tuple[float, str | None]) -> float:
        fitted = regression(*choice).fit(older, labels[:cut])
        return metrics(labels[cut:], in_classes(fitted, fitted.predict_proba(newer)))["macro_f1"]

    chosen = max(((strength, weights) for strength in STRENGTHS for weights in (None, "balanced")), key=judged)
    whole = vectors(kind)
    fitted = regression(*chosen).fit(whole.fit_transform(texts), labels)
    return in_classes(fitted, fitted.predict_proba(whole.transform(test["text"].to_list()))), {
        "strength": chosen[0],
        "class_weight": chosen[1],
    }


def vectors(kind: str) -> Any:
    """TF-IDF of words (1 and 2), of characters within words (3 to 5), or of both."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=2, sublinear_tf=True)
    return {"words": words, "characters": characters, "both": make_union(words, characters)}[kind]


def in_classes(fitted: Any, scores: Scores) -> Scores:
    """Scores ``[n, K]`` over all classes from those of the classes that the regression saw."""
    whole = np.zeros((len(scores), len(load_fields(CASE).classes)))
    whole[:, fitted.classes_] = scores
    return whole


def by_embedding(train: pl.DataFrame, test: pl.DataFrame, params: Params) -> tuple[Scores, Any]:
    """The case's own first bar: a logistic regression on the embeddings of an encoder that stays as it is."""
    case = part(CASE, "model")
    still = params.model.model_copy(update={"kind": "embedding"})
    network = case.build(still, load_fields(CASE))
    facts = case.fit_head(network, tokens(train, params), train["team"].to_numpy(), params.train, KEPT / "embeddings")
    return score(network, tokens(test, params)), {"strength": facts["strength"]}


def by_transformer(train: pl.DataFrame, test: pl.DataFrame, params: Params, seed: int) -> tuple[Scores, Any]:
    """The case's model, trained as the step `train` does it: the head first (if the case says so), then everything."""
    from pipelines.training.fit import fit
    from pipelines.training.rows import as_rows
    from pipelines.training.weights import save_weights

    fields = load_fields(CASE)
    case = part(CASE, "model")
    labels = train["team"].to_numpy()
    ids = tokens(train, params)
    rows = as_rows({}, labels, train["id"].to_list(), tokens=ids, classes=fields.outputs)
    with tempfile.TemporaryDirectory() as folder:
        start = None
        if isinstance(params.model, TextModelParams) and params.model.head_start:
            headed = case.build(params.model, fields)
            case.fit_head(headed, ids, labels, params.train, KEPT / "embeddings")
            start = Path(folder) / "head.pt"
            save_weights(headed, start)
        fitted = fit(
            lambda: case.build(params.model, fields),
            rows,
            params.train.model_copy(update={"seed": seed}),
            initial=start,
        )
    return score(fitted.model, tokens(test, params)), {"curve": fitted.curve}


def tokens(frame: pl.DataFrame, params: Params) -> list[list[int]]:
    """Token ids of every text, by the tokenizer that travels with the model."""
    from pipelines.text import load_tokenizer, tokenise

    return tokenise(load_tokenizer(part(CASE, "model").tokenizer(params.model)), frame["text"].to_list())


def score(network: Any, rows: list[list[int]]) -> Scores:
    """Probabilities ``[n, K]`` of the plain forward, batched by length."""
    import torch

    from pipelines.text import pad

    scores = np.zeros((len(rows), network.head.out_features))
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            places = order[start : start + 64]
            batch = {name: torch.from_numpy(tensor) for name, tensor in pad([rows[place] for place in places]).items()}
            scores[places] = network(**batch).double().softmax(-1).numpy()
    return scores


def summary(cells: list[Cell]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows (arm by window, means over seeds) and goals (the transformer's lead over the best opponent of each kind)."""
    rows = []
    goals = []
    for day in dict.fromkeys(cell["as_of"] for cell in cells):
        here = [cell for cell in cells if cell["as_of"] == day]
        means: dict[str, float] = {}
        for arm in dict.fromkeys(cell["arm"] for cell in here):
            own = [cell for cell in here if cell["arm"] == arm]
            f1 = [cell["macro_f1"] for cell in own]
            means[arm] = statistics.mean(f1)
            rows.append(
                {
                    "window before": day,
                    "model": arm,
                    "train": own[0]["rows"],
                    "test": own[0]["test"],
                    "seeds": len(own),
                    "macro_f1": round(means[arm], 4),
                }
                | {"min": min(f1), "max": max(f1)}
                | {
                    name: round(statistics.mean(cell[name] for cell in own), 4)
                    for name in ("accuracy", "log_loss", "seconds")
                }
            )
        # The best of the three on the very rows that judge: the opponents are given that much.
        best = max(TFIDF, key=lambda arm: means[arm])
        goals.append(
            goal(f"{day}: transformer over TF-IDF ({best}), macro-F1", means[TRANSFORMER] - means[best], 0.0, "higher")
        )
        goals.append(
            goal(f"{day}: transformer over embedding, macro-F1", means[TRANSFORMER] - means[EMBEDDING], 0.0, "higher")
        )
    return rows, goals


if __name__ == "__main__":
    main()
