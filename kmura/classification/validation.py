"""Every validation number of an epoch from one prediction pass."""

import keras
import numpy as np
import pandas as pd

from kmura import metrics


class StudyValidation(keras.callbacks.Callback):
    """Adds the scores of a split, at image and study level, to the logs of each epoch.

    Names: `val_loss_img val_acc_img val_auc_img val_acc_study val_auc_study val_f1_study`. A study's probability is the
    mean of its images'. An AUC over one class is NaN. Must stand before callbacks that read these logs.
    """

    def __init__(self, classifier: keras.Model, dataset, rows: pd.DataFrame, loss: keras.losses.Loss, task: str):
        """
        Args:
            classifier: gives logits [B, L].
            dataset: batches of images [B, H, W, C] in the order of `rows`.
            rows: study and labels of every image, as `kmura.data.labels.row_keys` gives them.
            loss: of (labels [N, L], logits [N, L]).
            task: of the model.
        """
        super().__init__()
        self.classifier, self.dataset, self.loss, self.task = classifier, dataset, loss, task
        self.study = (rows["area"] + "/" + rows["study"]).to_numpy()  # two areas may share the name of a study
        self.label = rows[[name for name in rows if name == "label" or name.startswith("label_")]].to_numpy()

    def on_epoch_end(self, epoch, logs=None):
        logits = self.classifier.predict(self.dataset, verbose=0)
        logs.update(validation_scores(self.study, self.label, logits, self.loss, self.task))


def validation_scores(study, label: np.ndarray, logit: np.ndarray, loss, task: str = "binary") -> dict[str, float]:
    """The six validation numbers of an epoch.

    Of several classes accuracy and F1 (weighted by the sizes of the classes) are of the most probable class, AUC is the
    mean of each class against the rest; of several labels all are means over the labels. Images of unknown label are
    left out.

    Args:
        study: ids [N].
        label: class ids [N, 1] (binary: 0 or 1), of multilabel 0 and 1 [N, L]; -1 is unknown.
        logit: [N, L].
        loss: of (targets [N, L], logits [N, L]).
        task: of the model.
    """
    known = (label >= 0).all(axis=1)
    study, label, logit = np.asarray(study)[known], label[known], logit[known].astype(np.float64)
    probability = metrics.probabilities(logit, task)
    pooled = metrics.pool_classes(study, probability, normalize=task == "multiclass")
    image, by_study = (
        _scores(of, value, task) for of, value in ((label, probability), (label[pooled.first], pooled.value))
    )
    targets = np.arange(logit.shape[1]) == label if task == "multiclass" else label
    found = {
        "val_loss_img": loss(targets.astype("float32"), logit.astype("float32")),
        "val_acc_img": image["accuracy"][0],
        "val_auc_img": image["auc"][0],
        "val_acc_study": by_study["accuracy"][0],
        "val_auc_study": by_study["auc"][0],
        "val_f1_study": by_study["f1"][0],
    }
    return {name: float(value) for name, value in found.items()}


def _scores(label: np.ndarray, probability: np.ndarray, task: str) -> dict[str, np.ndarray]:
    if task == "multiclass":
        found = metrics.multiclass_scores(label[:, 0], probability)
        return found | {"f1": found["f1_weighted"]}
    return metrics.multilabel_scores(label, probability)
