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

    def __init__(self, classifier: keras.Model, dataset, rows: pd.DataFrame, loss: keras.losses.Loss):
        """
        Args:
            classifier: gives logits [B, 1].
            dataset: batches of images [B, H, W, C] in the order of `rows`.
            rows: study and label of every image, as `kmura.data.pipeline.row_keys` gives them.
            loss: of (labels [N, 1], logits [N, 1]).
        """
        super().__init__()
        self.classifier = classifier
        self.dataset = dataset
        self.rows = rows
        self.loss = loss

    def on_epoch_end(self, epoch, logs=None):
        logits = self.classifier.predict(self.dataset, verbose=0)
        logs.update(validation_scores(self.rows["study"], self.rows["label"].to_numpy(), logits[:, 0], self.loss))


def validation_scores(study, label: np.ndarray, logit: np.ndarray, loss) -> dict[str, float]:
    """The six validation numbers of an epoch from study ids [N], labels [N] and logits [N]."""
    probability = 1 / (1 + np.exp(-np.clip(logit.astype(np.float64), -60, 60)))
    pooled = metrics.pool_studies(study, probability)
    image, by_study = metrics.scores(label, probability), metrics.scores(label[pooled.first], pooled.value)
    found = {
        "val_loss_img": float(loss(label[:, None].astype("float32"), logit[:, None])),
        "val_acc_img": image["accuracy"][0],
        "val_auc_img": image["auc"][0],
        "val_acc_study": by_study["accuracy"][0],
        "val_auc_study": by_study["auc"][0],
        "val_f1_study": by_study["f1"][0],
    }
    return {name: float(value) for name, value in found.items()}
