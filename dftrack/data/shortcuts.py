"""Can the classes be told apart without looking at the face? The floor that a detector's AUC must be held against.

The traits of a file (its size, dimensions, JPEG tables, colour means, ...) are given to two plain models, gradient
boosting and logistic regression. The better one by cross-validation over the groups of train is scored on val.
Every trait is tried alone too, so that the culprit is named.
scikit-learn is imported by what uses it: whoever reads pictures imports this module, and few look for shortcuts.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # a part of scikit-learn

from dftrack.data.look import Traits

FOLDS = 5
ENOUGH = 20  # pictures of each class in train, below which nothing can be said
BINS = 16  # of a single trait
BOOSTING, REGRESSION = "gradient boosting", "logistic regression"
COMMON = 20  # values of a trait of words that are told apart; the rest count as one

Table = NDArray[np.float64]
Labels = NDArray[np.int64]
Scores = NDArray[np.float64]
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True, slots=True)
class Rows:
    """Pictures of one split, as far as the probe knows them."""

    traits: Sequence[Traits]
    labels: Labels  # (n,), 1 = fake
    groups: Sequence[str]


@dataclass(frozen=True, slots=True)
class Shortcut:
    """What the traits of the files alone tell. AUC 0.5: nothing; 1: everything. None: undefined, `reason` says why."""

    auc: float | None  # the floor: on val by the model chosen on train, or, where val lacks a class, as below
    train_auc: float | None  # cross-validated over the groups of train
    model: str  # "gradient boosting" or "logistic regression"; "" where undefined
    traits: Mapping[str, float]  # trait -> its AUC alone, cross-validated on train, the strongest first
    pictures: tuple[int, int]  # of train and of val that were looked at
    reason: str = ""


def probe(train: Rows, val: Rows) -> Shortcut:
    """Train the two models on the traits of `train`, and score the better one on `val`.

    Undefined, with the reason, where train has under 20 pictures of a class or under 5 groups with each class.
    """
    sizes = (len(train.labels), len(val.labels))
    why_not = _too_little(train)
    if why_not:
        return Shortcut(None, None, "", {}, sizes, why_not)
    encoding = Encoding(train.traits)
    table = encoding.table(train.traits)
    folds = _folds(train)
    with threadpool_limits(1):  # tables this small: on busy cores many threads were ten times slower than one
        held_out = {name: _held_out(name, table, train.labels, folds) for name in (BOOSTING, REGRESSION)}
        model, train_auc = max(held_out.items(), key=lambda item: item[1])
        if len(np.unique(val.labels)) == 2:
            auc, reason = _auc(_fitted(model, table, train.labels, encoding.table(val.traits)), val.labels), ""
        else:
            auc, reason = train_auc, "val lacks a class: cross-validated on train"
    alone = {name: _alone(table[:, columns], train.labels, folds) for name, columns in encoding.columns.items()}
    ordered = dict(sorted(alone.items(), key=lambda item: -round(item[1], 6)))
    return Shortcut(auc, train_auc, model, ordered, sizes, reason)


class Encoding:
    """Traits as numbers: words become one column for each common value of train."""

    def __init__(self, rows: Sequence[Traits]) -> None:
        self.words: dict[str, list[str]] = {}
        self.columns: dict[str, list[int]] = {}  # trait -> its columns in the table
        width = 0
        for name, value in rows[0].items():
            if isinstance(value, str):
                values, counts = np.unique([str(row[name]) for row in rows], return_counts=True)
                common = np.argsort(-counts, kind="stable")[:COMMON]
                self.words[name] = [str(value) for value in values[common]]
            span = len(self.words[name]) if name in self.words else 1
            self.columns[name] = list(range(width, width + span))
            width += span

    def table(self, rows: Sequence[Traits]) -> Table:
        """(n, columns)"""
        parts = []
        for name in self.columns:
            if name in self.words:
                parts.append(np.array([[row[name] == word for word in self.words[name]] for row in rows], np.float64))
            else:
                parts.append(np.array([[float(row[name])] for row in rows], np.float64))
        return np.concatenate(parts, axis=1)


def _too_little(train: Rows) -> str:
    for label, name in enumerate(("real", "fake")):
        count = int((train.labels == label).sum())
        if count < ENOUGH:
            return f"train holds {count} {name} pictures, {ENOUGH} are needed"
        groups = len({group for group, value in zip(train.groups, train.labels, strict=True) if value == label})
        if groups < FOLDS:
            return f"the {name} pictures of train are from {groups} groups, {FOLDS} are needed"
    return ""


def _folds(train: Rows) -> list[Fold]:
    """(rows to learn from, rows to score) of each fold; a group is never on both sides."""
    from sklearn.model_selection import GroupKFold

    return list(GroupKFold(FOLDS).split(np.zeros(len(train.labels)), groups=np.asarray(train.groups)))


def _held_out(model: str, table: Table, labels: Labels, folds: Sequence[Fold]) -> float:
    """The model's AUC on pictures whose groups it has not seen."""
    return _mean_auc(
        [(_fitted(model, table[learn], labels[learn], table[score]), labels[score]) for learn, score in folds]
    )


def _fitted(model: str, table: Table, labels: Labels, asked: Table) -> Scores:
    """P(fake) of each row of `asked` by a model trained on `table`."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(labels)) < 2:
        return np.full(len(asked), float(labels[0]))
    if model == BOOSTING:
        leaf = min(20, max(2, len(labels) // 10))
        judge = HistGradientBoostingClassifier(max_leaf_nodes=15, min_samples_leaf=leaf, early_stopping=False)
    else:
        judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # classes that come apart entirely never converge: fine
        judge.fit(table, labels)
    return np.asarray(judge.predict_proba(asked)[:, 1], np.float64)


def _alone(columns: Table, labels: Labels, folds: Sequence[Fold]) -> float:
    """AUC of one trait: the share of fakes among the learning pictures in the same bin, whatever its direction."""
    if (columns == columns[0]).all():
        return 0.5  # the same everywhere
    answers = []
    for learn, score in folds:
        if columns.shape[1] > 1:
            codes = np.where(columns.any(1), columns.argmax(1) + 1, 0)
        else:
            edges = np.unique(np.quantile(columns[learn, 0], np.linspace(0, 1, BINS + 1)[1:-1]))
            codes = np.searchsorted(edges, columns[:, 0], side="left")
        count = np.bincount(codes[learn], minlength=int(codes.max()) + 1)
        fakes = np.bincount(codes[learn], weights=labels[learn], minlength=len(count))
        shares = (fakes + 2 * labels[learn].mean()) / (count + 2)  # two pictures' worth of the share in all
        answers.append((shares[codes[score]], labels[score]))
    return _mean_auc(answers)


def _mean_auc(answers: Sequence[tuple[Scores, Labels]]) -> float:
    """The mean over the folds that hold both classes. (Pooled, a trait without meaning would come out below 0.5.)"""
    defined = [(scores, labels) for scores, labels in answers if len(np.unique(labels)) == 2]
    if not defined:  # each fold of one class: pool them
        defined = [(np.concatenate([a[0] for a in answers]), np.concatenate([a[1] for a in answers]))]
    return float(np.mean([_auc(scores, labels) for scores, labels in defined]))


def _auc(scores: Scores, labels: Labels) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))
