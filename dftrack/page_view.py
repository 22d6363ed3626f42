"""A view of the MLflow page's list of runs, ready to compare: which runs, in which order, with which columns.

The page keeps a view that somebody shares as JSON in a tag of the experiment, and an address names it; columns cannot
be given otherwise. Learnt from the page of MLflow 3.17 (its own `Share` button does the same), held by a browser test.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from dftrack.speaking import speaking
from dftrack.store import Connection

KEY = "dftrack"
TAG = f"mlflow.sharedViewState.{KEY}"
FINISHED = "attributes.status = 'FINISHED'"
SETTINGS = (
    "train.learning_rate",
    "train.seed",
    "train.epochs",
    "model.dropout",
    "model.kernel_size",
    "data.image_size",
)
TAGS = ("dftrack.kind", "dftrack.study")
METRICS = ("val/roc_auc", "val/loss")


@dataclass(frozen=True, slots=True)
class View:
    """What the list shows."""

    search: str  # in MLflow's language
    metric: str  # the highest first
    columns: Sequence[str]  # in the page's words, like "metrics.`val/roc_auc`"

    def state(self) -> str:
        """As the page keeps it."""
        return json.dumps(
            {
                "searchFilter": self.search,
                "orderByKey": f"metrics.`{self.metric}`",
                "orderByAsc": False,
                "startTime": "ALL",
                "lifecycleFilter": "Active",
                "datasetsFilter": [],
                "modelVersionFilter": "All Runs",
                "selectedColumns": list(self.columns),
            }
        )


def ready_view(metrics: Sequence[str], kind: str | None = None) -> View:
    """Finished runs, the best test AUC first. metrics: the names there are; kind: of these runs only."""
    tests = sorted(
        (name for name in metrics if name.startswith("test") and name.endswith("/roc_auc") and name.count("/") == 1),
        key=lambda name: (name != "test-dev/roc_auc", name),
    )
    shown = [*tests, *METRICS]
    columns = [f"metrics.`{name}`" for name in shown]
    columns += [f"params.`{name}`" for name in SETTINGS] + [f"tags.`{name}`" for name in TAGS]
    search = FINISHED + (f" and tags.`dftrack.kind` = '{kind}'" if kind else "")
    return View(search, shown[0], ("attributes.`Models`", *columns))


def offer(connection: Connection, experiment: str, view: View) -> str:
    """Keep `view` with the experiment (its id); returns what follows the page's own address. Raises StoreError."""
    with speaking(connection.uri):
        known = connection.client.get_experiment(experiment).tags
        if known.get(TAG) != view.state():
            connection.client.set_experiment_tag(experiment, TAG, view.state())
    words = urlencode({"viewStateShareKey": KEY, "workflowType": "machine_learning"})
    return f"/#/experiments/{experiment}/runs?{words}"
