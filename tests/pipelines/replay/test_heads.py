"""pipelines/replay on texts: heads on embeddings that are computed once, and no network exported."""

import shutil
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from pipelines.case_files import CASES_ROOT
from pipelines.cases import part
from pipelines.cases.sources import Source
from pipelines.cases.triage import source
from pipelines.params_file import load_params
from pipelines.replay import heads
from pipelines.replay.run import Options, replay
from pipelines.runtime import by_length
from pipelines.settings import Settings
from pipelines.text import load_tokenizer, pad, tokenise
from tests.encoders import write_encoder
from tests.pipelines.reported import FIELDS, reports

pytestmark = pytest.mark.slow
START = datetime(2014, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Parameters, state folder, all reports and the summary of a replay of four months.

    Its encoder has two layers.
    """
    home = tmp_path_factory.mktemp("texts")
    own = load_params("triage", CASES_ROOT / "triage" / "variants" / "embedding" / "triage.yaml")
    params = own.model_copy(
        update={
            "model": own.model.model_copy(update={"encoder": str(write_encoder(home / "encoder")), "max_tokens": 24}),
            "train": own.train.model_copy(update={"threads": 1}),
            "dataset": own.dataset.model_copy(
                update={"window_days": 200, "min_rows": 50, "fallback_rows": 100, "min_holdout": 20}
            ),
            "gate": own.gate.model_copy(update={"min_differing": 20, "first_lift": -0.1}),  # 35 rows prove nothing
            "replay": own.replay.model_copy(update={"min_rows": 20}),
        }
    )
    stream = reports(500, start=START, days=480, words=4)

    def rows(_source, window, _params):
        return stream.filter(pl.col("event_time").is_between(window.start, window.end, closed="left"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "resolve", lambda *_: Source("made here", "generated", "", ""))
        patch.setattr(source, "rows", rows)
        # A folder of parameters says that these are meant, and not the variant that the case declares.
        settings = Settings(home=home, params_dir=home)
        summary = replay(
            params, settings, Options("never,quarterly,oracle", date(2014, 10, 1), months=4), lambda _about: None
        )
    return params, home, stream, summary


def test_a_text_is_embedded_once_and_no_network_is_exported(world):
    """Three policies, their trainings, verdicts and scores together embed every report that they saw exactly once."""
    _, home, stream, summary = world
    kept = [bytes(key) for path in home.glob("cache/embeddings/*/*.npz") for key in np.load(path)["keys"]]
    seen = stream.filter(pl.col("event_time") < START + timedelta(days=393))
    assert len(kept) == len(set(kept)) <= seen.height
    assert len(kept) > 0.8 * seen.height
    assert not list(home.rglob("*.onnx"))
    assert summary["policies"]["quarterly"]["retrains"] == 1
    assert all(one["total"] >= summary["policies"]["oracle"]["total"] - 1e-12 for one in summary["policies"].values())


def test_a_heads_scores_are_the_networks(world, tmp_path):
    """The probabilities of a head equal those of the whole network with its weights.

    Also where they are far from even.
    """
    import torch

    params, home, stream, summary = world
    key = summary["by_seed"]["0"]["never"]["ticks"][0]["candidate"]
    train = shutil.copytree(home / "replay" / "triage" / "candidates" / key / "train", tmp_path / "train")
    texts = stream["text"].to_list()[:40]
    network = part("triage", "model").build(params.model, FIELDS)
    network.load_state_dict(torch.load(train / "weights.pt", weights_only=True))
    network.eval()
    with torch.no_grad():
        network.head.weight *= 100
    torch.save(network.state_dict(), train / "weights.pt")
    tokens = pad(tokenise(load_tokenizer(train / "tokenizer.json"), texts))
    expected = np.empty((len(texts), FIELDS.outputs))
    with torch.inference_mode():
        for share, batch in by_length(tokens):
            expected[share] = torch.softmax(
                network(**{name: torch.from_numpy(tensor) for name, tensor in batch.items()}), 1
            ).numpy()
    found = heads.scores(params, FIELDS, train, {"text": texts}, home / "cache" / "embeddings")
    assert np.abs(found - expected).max() < 1e-5
    assert found.std(0).max() > 0.05
