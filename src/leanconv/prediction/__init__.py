"""What trained runs say: of photos (:func:`predict`) and of labelled images (:func:`evaluate`).

One run, or the average of several (a model ensemble, row S7 of the source), with dropout off or drawn many times.
"""

from leanconv.prediction.evaluating import Evaluation as Evaluation
from leanconv.prediction.evaluating import Mistake as Mistake
from leanconv.prediction.evaluating import evaluate as evaluate
from leanconv.prediction.naming import Prediction as Prediction
from leanconv.prediction.naming import predict as predict

__all__ = ["Evaluation", "Mistake", "Prediction", "evaluate", "predict"]
