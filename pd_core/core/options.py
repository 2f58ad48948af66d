"""Options of the method, as spelled in the parameters."""

from enum import StrEnum


class Precision(StrEnum):
    """Precision of the towers; trained parameters stay fp32."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"  # with loss scaling


class Metric(StrEnum):
    """Number for how well the classes are told apart."""

    ACCURACY = "accuracy"
    BALANCED_ACCURACY = "balanced_accuracy"  # mean recall of the classes
    MACRO_F1 = "macro_f1"  # mean F1 of the classes


class TeacherMethod(StrEnum):
    """Method that a teacher was tuned with."""

    PROMPTSRC = "promptsrc"  # prompts in both towers, self-regularised
    IVLP = "ivlp"  # the same prompts, cross entropy only
    MAPLE = "maple"  # image prompts computed from the text prompts; cross entropy
    COOP = "coop"  # prompts at the input of the text tower only; cross entropy
    CLIP = "clip"  # no training: the zero-shot model with a hand-written prompt


class Form(StrEnum):
    """Distillation target."""

    LOGITS_KL = "logits_kl"  # the teacher's predictions
    FEATURES_L1 = "features_l1"  # the teacher's image features, by absolute differences
    FEATURES_MSE = "features_mse"  # the same, by squared differences


class Trained(StrEnum):
    """Trained part of the student."""

    PROMPTS_AND_PROJECTOR = "prompts_and_projector"
    PROJECTOR_ONLY = "projector_only"  # no prompts at all
    NORM_AND_PROJECTOR = "norm_and_projector"  # scales and shifts of the tower's normalisations
    FULL_FINETUNE = "full_finetune"  # the whole image tower and the projector, no prompts


class TextFeatures(StrEnum):
    """Source of the text features that classify the student's image features."""

    TEACHER = "teacher"  # the shared class vectors
    STUDENT = "student"  # of the student's own text tower, from the hand-written prompt


class Selection(StrEnum):
    """Epoch whose student is saved."""

    LAST = "last"
    BEST_ON_VAL = "best_on_val"  # on the few labelled validation images
    BEST_ON_TEST_AS_PUBLISHED = "best_on_test_as_published"  # on test images of base classes


class TeacherWeighting(StrEnum):
    """Weights of the teachers when predictions are averaged."""

    EQUAL = "equal"
    CONFIDENCE = "confidence"  # probability of each teacher's top class


class Computed(StrEnum):
    """Computation of a frozen encoder's features during a training."""

    ONLINE = "online"  # at every step
    CACHED = "cached"  # before the training, stored and reused by later runs


class Augmentation(StrEnum):
    """Where the views of training images are resized and mirrored."""

    CPU = "cpu"  # by Pillow
    DEVICE = "device"  # of the training; a pixel differs by at most 2 of 255


class OnCorrupt(StrEnum):
    """Action for an image that cannot be decoded."""

    FAIL = "fail"
    SKIP = "skip"


class OnNonFinite(StrEnum):
    """Action for a batch with a loss that is not finite."""

    FAIL = "fail"
    SKIP = "skip"  # synchronises with the device at every step


BASELINE = "tuned_student"  # optional classifier
TITLES = {
    "zero_shot_student": "zero-shot student",
    "zero_shot_teacher": "zero-shot teacher",
    "teacher": "tuned teacher",
    "student": "distilled student",
    BASELINE: "tuned student",
}
"""Titles of the evaluated classifiers in tables."""
