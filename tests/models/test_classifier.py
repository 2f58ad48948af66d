"""A classifier compares an encoder's features with class vectors, at the scale of its own CLIP."""

import weakref
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tiny import NAMES, images, towers
from torch import Tensor

from pd_core.core.options import Precision, TextFeatures
from pd_core.data.loading.images import Batch
from pd_core.models import class_vectors
from pd_core.models.class_vectors import Classifier, ClassVectors, build
from pd_core.models.portable.preprocess import Preprocess
from pd_core.models.student import Student
from pd_core.models.teacher import Teacher

CPU = torch.device("cpu")
SCALE = 3.0  # of the encoder's CLIP; the vectors have another


PREPROCESS = Preprocess(16)


class Batches:
    """Seven images, in batches of three."""

    count = 7

    def in_order(self) -> Iterator[Batch]:
        for start in range(0, self.count, 3):
            indices = torch.arange(start, min(start + 3, self.count))
            yield Batch(indices, {PREPROCESS: images(self.count)[indices]}, 0, start // 3)


def shared() -> ClassVectors:
    vectors = F.normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(3)), dim=-1)
    return ClassVectors(NAMES, vectors, logit_scale=7.0, source="test")


def student(text_features: TextFeatures = TextFeatures.TEACHER) -> Student:
    clip = replace(towers(), logit_scale=SCALE)
    return Student.untrained(clip, feature_width=16, text_features=text_features).eval()


def test_a_distilled_student_is_compared_with_the_shared_vectors_at_its_own_scale() -> None:
    model = student()

    with torch.no_grad():
        logits = class_vectors.distilled(model, shared()).logits(images(4))
        torch.testing.assert_close(logits, SCALE * model(images(4)) @ shared().vectors.T)


def test_a_student_may_be_compared_with_its_own_clips_text_features() -> None:
    model = student(TextFeatures.STUDENT)

    used = class_vectors.distilled(model, shared()).vectors

    expected = build(Teacher(model.towers).eval(), NAMES)
    assert used.names == NAMES
    assert torch.equal(used.vectors, expected.vectors)


def test_a_clip_without_tuning_is_compared_with_the_texts_of_the_template_given() -> None:
    clip = replace(towers(), logit_scale=SCALE)
    teacher = Teacher(clip, template="a drawing of {}.").eval()

    classifier = class_vectors.zero_shot(clip, NAMES, "a drawing of {}.")

    assert classifier.logit_scale == SCALE
    assert torch.equal(classifier.vectors.vectors, build(teacher, NAMES).vectors)
    with torch.no_grad():
        expected = teacher.image_features(images(4))
        torch.testing.assert_close(classifier.encode(images(4)), expected)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_logits_come_in_the_order_of_the_images_with_progress(precision: Precision) -> None:
    weight = torch.eye(16)
    dtypes, progress = [], []

    def encode(pictures: Tensor) -> Tensor:
        features = pictures.flatten(1)[:, :16] @ weight
        dtypes.append(features.dtype)
        return features

    classifier = Classifier(encode, shared(), SCALE, PREPROCESS)
    logits = class_vectors.logits_of(
        {"student": classifier, "double": Classifier(encode, shared(), 2 * SCALE, PREPROCESS)},
        Batches(),
        CPU,
        precision,
        lambda *numbers: progress.append(numbers),
    )

    exact = SCALE * images(7).flatten(1)[:, :16] @ shared().vectors.T
    is_exact = precision is Precision.FP32
    rtol, atol = (1e-5, 1e-5) if is_exact else (0.1, 1)
    for name, factor in (("student", 1), ("double", 2)):
        computed = torch.from_numpy(logits[name])
        torch.testing.assert_close(computed, factor * exact, rtol=rtol, atol=atol)
    assert progress == [(3, 7), (6, 7), (7, 7)]
    assert {*dtypes} == {torch.float32 if is_exact else torch.bfloat16}


def test_the_logits_of_a_batch_are_dropped_once_they_are_reduced() -> None:
    alive: list[weakref.ref[NDArray[np.float32]]] = []

    def largest(logits: NDArray[np.float32], positions: NDArray[np.int64]) -> NDArray[np.float32]:
        assert not [each for each in alive if each() is not None]
        alive.append(weakref.ref(logits))
        return np.stack([positions, logits.max(axis=1)], axis=1)

    classifier = Classifier(lambda x: x.flatten(1)[:, :16], shared(), SCALE, PREPROCESS)
    given = {"student": classifier}, Batches(), CPU, Precision.FP32

    rows = class_vectors.reduced_logits(*given, largest)["student"]

    logits = class_vectors.logits_of(*given)["student"]
    assert len(alive) == 3
    assert np.array_equal(rows, np.stack([np.arange(7), logits.max(axis=1)], axis=1))
