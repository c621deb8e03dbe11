"""A text as TF-IDF or counts of its words and pairs of words: the tokenizer that finds them, and their weights.

TF-IDF is that of scikit-learn's ``TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)`` on the same texts,
each cut after ``words.max_tokens`` words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import DataError
from pipelines.params import WordsParams
from pipelines.text import normalise, pad, tokenise

Ids = NDArray[np.int64]
UNKNOWN = 1
"""The id of words that are not known; 0 is padding. Neither is a word, nor part of a pair."""
_FIRST = ("[PAD]", "[UNK]")
"""What stands at ids 0 and 1: no text has such a word, as brackets stand between words."""
_WORD = r"[\p{L}\p{N}_]{2,}"
r"""Python's ``\w\w+``, the words of scikit-learn, for the tokenizer's expressions."""
_PAIR = 32
"""The bits of a pair's second word in its key; a word's own key is its id."""


def tokenizer(texts: Sequence[str], words: WordsParams) -> Any:
    """The tokenizer of training texts: lowercase, words of two characters or more, the rest is between them.

    It knows the commonest ``max_words`` of those that ``min_rows`` texts have, each text cut after ``max_tokens``
    words. Equal texts give equal bytes. Raises DataError if there is no such word.
    """
    from tokenizers.trainers import WordLevelTrainer

    untrained = _tokenizer([], words)
    trainer = WordLevelTrainer(vocab_size=2**31, min_frequency=words.min_rows, special_tokens=[], show_progress=False)
    untrained.train_from_iterator(map(normalise, texts), trainer)
    vocabulary = untrained.get_vocab()
    found = sorted(vocabulary, key=vocabulary.__getitem__)
    ids = pad(tokenise(_tokenizer(found, words), texts))["input_ids"]
    return _tokenizer([found[place - len(_FIRST)] for place in _kept(_counts(ids, pairs=False), words)], words)


def _tokenizer(known: Sequence[str], words: WordsParams) -> Any:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    ids = {word: place for place, word in enumerate([*_FIRST, *known])}
    made = Tokenizer(models.WordLevel(ids, unk_token=_FIRST[UNKNOWN]))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
    made.enable_truncation(words.max_tokens)
    return made


@dataclass(frozen=True)
class Words:
    """What training texts have, a column each: words and pairs.

    ``grams`` [V] rise: ids of words, then pairs as ``first << 32 | second``. ``weigh`` is scikit-learn's transformer of
    counts to TF-IDF; ``None``: counts stay.
    """

    grams: Ids
    weigh: Any = None

    @property
    def columns(self) -> int:
        """How many columns the matrix has."""
        return len(self.grams)

    @property
    def words(self) -> Ids:
        """The ids of the words, in column order."""
        return self.grams[self.grams < 1 << _PAIR]

    @property
    def pairs(self) -> Ids:
        """The ids ``[P, 2]`` of the pairs, in column order."""
        pairs = self.grams[self.grams >= 1 << _PAIR]
        return np.stack([pairs >> _PAIR, pairs & (1 << _PAIR) - 1], axis=1)

    def matrix(self, ids: Ids) -> Any:
        """What rows have of it ``[B, V]``, sparse, of ids ``[B, S]``: rows of TF-IDF have length 1, or are zeros."""
        counts = self._counted(*_grams(ids, pairs=len(self.pairs) > 0), len(ids))
        return counts if self.weigh is None else self.weigh.transform(counts)

    def _counted(self, rows: NDArray[Any], grams: Ids, count: int) -> Any:
        from scipy import sparse

        columns = np.searchsorted(self.grams, grams).clip(max=self.columns - 1)
        known = self.grams[columns] == grams
        ones = np.ones(known.sum())
        return sparse.coo_matrix((ones, (rows[known], columns[known])), (count, self.columns)).tocsr()


def learn(ids: Ids, words: WordsParams, *, weighed: bool) -> Words:
    """The words and pairs of training rows, given as ids ``[B, S]`` of :func:`tokenizer`, for TF-IDF or counts.

    Those that ``min_rows`` rows have, and of them the commonest ``max_words``; among equally common ones a word comes
    before a pair, and then what has the lower id. Raises DataError if there are none.
    """
    from sklearn.feature_extraction.text import TfidfTransformer

    counts = _counts(ids, pairs=words.pairs)
    grams = np.sort(_kept(counts, words))
    if not weighed:
        return Words(grams)
    weigh = TfidfTransformer(sublinear_tf=True)
    return Words(grams, weigh.fit(counts[1][:, np.searchsorted(counts[0], grams)]))


def _grams(ids: Ids, *, pairs: bool) -> tuple[NDArray[Any], Ids]:
    """Every word and pair of the rows: the row that it stands in, and its key."""
    known = ids > UNKNOWN
    rows, grams = known.nonzero()[0], ids[known]
    if not pairs:
        return rows, grams
    beside = known[:, :-1] & known[:, 1:]
    both = ids[:, :-1][beside] << _PAIR | ids[:, 1:][beside]
    return np.concatenate([rows, beside.nonzero()[0]]), np.concatenate([grams, both])


def _counts(ids: Ids, *, pairs: bool) -> tuple[Ids, Any]:
    """The keys of all that stands in the rows, rising, and how often each row has it, ``[B, keys]``."""
    from scipy import sparse

    rows, grams = _grams(ids, pairs=pairs)
    keys, columns = np.unique(grams, return_inverse=True)
    return keys, sparse.coo_matrix((np.ones(len(rows)), (rows, columns)), (len(ids), len(keys))).tocsr()


def _kept(counts: tuple[Ids, Any], words: WordsParams) -> Ids:
    """The keys of what is common enough, the commonest first."""
    keys, often = counts
    total = np.asarray(often.sum(0)).reshape(-1)
    common = often.getnnz(0) >= words.min_rows
    if not common.any():
        raise DataError(
            f"no word stands in {words.min_rows} of the {often.shape[0]} training texts: lower model.words.min_rows, "
            "or look at the texts"
        )
    order = np.lexsort((keys, -total))
    kept: Ids = keys[order[common[order]]][: words.max_words]
    return kept
