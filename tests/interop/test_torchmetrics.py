"""torchmetrics: metrics of each sample, by functions and by metric objects made inside."""

import pytest
import torch

from vmap_core import DataDependentError, vmap
from vmap_core.testing import check_rule

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from torchmetrics import functional as F  # noqa: E402

SIZES = (3, 1)
G = torch.Generator().manual_seed(0)
X, Y = torch.randn(8, generator=G), torch.randn(8, generator=G)
SCORES, LABELS = torch.rand(8, generator=G), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
CLASS_SCORES, CLASSES = torch.rand(8, 4, generator=G).softmax(-1), torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
IMAGE, OTHER = torch.rand(1, 3, 12, 12, generator=G), torch.rand(1, 3, 12, 12, generator=G)
BINARY, MULTI = {"task": "binary"}, {"task": "multiclass", "num_classes": 4}


def updated(x, y):
    metric = torchmetrics.MeanSquaredError()
    metric.update(x, y)
    metric.update(x * 2, y)
    return metric.compute()


METRICS = {
    "accuracy": (F.accuracy, SCORES, LABELS, BINARY),
    "F1": (F.f1_score, SCORES, LABELS, BINARY),
    "AUROC": (F.auroc, SCORES, LABELS, {**BINARY, "thresholds": 5}),
    "confusion matrix": (F.confusion_matrix, SCORES, LABELS, BINARY),
    "accuracy of classes": (F.accuracy, CLASS_SCORES, CLASSES, MULTI),
    "accuracy of classes, micro": (F.accuracy, CLASS_SCORES, CLASSES, {**MULTI, "average": "micro"}),
    "top 2 accuracy": (F.accuracy, CLASS_SCORES, CLASSES, {**MULTI, "top_k": 2}),
    "F1 of classes": (F.f1_score, CLASS_SCORES, CLASSES, {**MULTI, "average": "macro"}),
    "Cohen's kappa": (F.cohen_kappa, CLASS_SCORES, CLASSES, MULTI),
    "squared error": (F.mean_squared_error, X, Y, {}),
    "R2": (F.r2_score, X, Y, {}),
    "Pearson correlation": (F.pearson_corrcoef, X, Y, {}),
    "explained variance": (F.explained_variance, X, Y, {}),
    "cosine similarity": (F.cosine_similarity, CLASS_SCORES, CLASS_SCORES.flip(0), {}),
    "Kullback-Leibler divergence": (F.kl_divergence, CLASS_SCORES, CLASS_SCORES.flip(0), {}),
    "pairwise similarity": (F.pairwise_cosine_similarity, CLASS_SCORES[:3], CLASS_SCORES[3:], {}),
    "peak signal to noise": (F.image.peak_signal_noise_ratio, IMAGE, OTHER, {"data_range": 1.0}),
    "structural similarity": (F.image.structural_similarity_index_measure, IMAGE, OTHER, {"data_range": 1.0}),
    "a metric object": (updated, X, Y, {}),
    "a classification object": (
        lambda p, t: torchmetrics.Accuracy(task="multiclass", num_classes=4)(p, t),
        CLASS_SCORES, CLASSES, {},
    ),
    "a collection": (
        lambda x, y: torchmetrics.MetricCollection([torchmetrics.MeanSquaredError(), torchmetrics.MeanAbsoluteError()])(x, y),
        X, Y, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", METRICS)
def test_metrics(name):
    metric, x, y, options = METRICS[name]
    assert check_rule(lambda x, y: metric(x, y, **options), x, y, batch_sizes=SIZES, nested=False)


def test_the_peer_cannot():
    """What users gain; once the peer can, this goes."""
    with pytest.raises(RuntimeError, match="dynamic shape"):
        torch.func.vmap(lambda p, t: F.classification.binary_accuracy(p, t))(SCORES.expand(2, 8), LABELS.expand(2, 8))


def test_what_depends_on_the_values_says_so():
    """Ties are ranked by the values that repeat; how many these are differs."""
    x = torch.tensor([[1.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    with pytest.raises(DataDependentError, match="Instead"):
        vmap(F.spearman_corrcoef)(x, x)
    torch.testing.assert_close(vmap(F.spearman_corrcoef)(x[1:], x[1:]), torch.ones(1))
