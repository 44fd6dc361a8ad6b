"""What a task is worth without a language model: n-gram counts and a linear classifier, by scikit-learn."""

from toolchain.glue.metrics import score
from toolchain.glue.tasks import Row, Task, sample

NGRAMS = (1, 3)  # words; word order shows only in the longer ones


def baseline(task: Task, *, rows: int | None = None, seed: int = 0) -> dict:
    """{"name", "metric", "value", "rows"}: the dev metric of n-grams fitted on (at most `rows`) train rows.

    Word n-grams of one to three words, present or not, pairs joined into one text, under logistic
    regression (ridge regression where the task is one). Deterministic for a seed.
    """
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline

    train, dev = sample(task.rows("train"), rows, seed), task.rows("dev")
    head = Ridge() if task.problem == "regression" else LogisticRegression(max_iter=1000, random_state=seed)
    # A token is what stands between spaces: marks and single letters count, as they do for the models.
    counts = CountVectorizer(ngram_range=NGRAMS, binary=True, token_pattern=r"\S+")
    model = make_pipeline(counts, head)

    def texts(of: list[Row]) -> list[str]:
        return [f"{row.text_a} {row.text_b or ''}" for row in of]

    model.fit(texts(train), np.array([row.label for row in train]))
    value = score(task.metric, model.predict(texts(dev)), [row.label for row in dev])
    return {"name": "n-grams", "metric": task.metric, "value": value, "rows": len(dev)}
