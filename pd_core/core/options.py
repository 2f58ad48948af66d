"""The named choices of the method, as the parameters and the functions spell them."""

from enum import StrEnum


class Precision(StrEnum):
    """What the towers compute in; what is trained stays fp32."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"  # with loss scaling


class TeacherMethod(StrEnum):
    """How a teacher came about."""

    PROMPTSRC = "promptsrc"  # prompts in both towers, tuned with self-regularisation
    IVLP = "ivlp"  # the same prompts, tuned by cross entropy alone
    MAPLE = "maple"  # image prompts are linear functions of the text prompts; cross entropy
    COOP = "coop"  # prompts at the text tower's input only; cross entropy
    CLIP = "clip"  # no training: the zero-shot model with a hand-written prompt


class Form(StrEnum):
    """What the student imitates."""

    LOGITS_KL = "logits_kl"  # the teacher's predictions
    FEATURES_L1 = "features_l1"  # the teacher's image features, by absolute differences
    FEATURES_MSE = "features_mse"  # the same, by squared differences


class Trained(StrEnum):
    """What of the student is trained."""

    PROMPTS_AND_PROJECTOR = "prompts_and_projector"
    PROJECTOR_ONLY = "projector_only"  # no prompts at all
    FULL_FINETUNE = "full_finetune"  # the whole image tower and the projector, no prompts


class TextFeatures(StrEnum):
    """Whose text features the student is compared with."""

    TEACHER = "teacher"  # the shared class vectors
    STUDENT = "student"  # its own text tower's, from the hand-written prompt


class Selection(StrEnum):
    """Which epoch's student is kept."""

    LAST = "last"
    BEST_ON_VAL = "best_on_val"  # on the few labelled validation images
    BEST_ON_TEST_AS_PUBLISHED = "best_on_test_as_published"  # on test images of base classes


class TeacherWeighting(StrEnum):
    """How the predictions of several teachers are averaged."""

    EQUAL = "equal"
    CONFIDENCE = "confidence"  # by the probability of each teacher's own best class


class Computed(StrEnum):
    """When a frozen tower looks at the views of a training."""

    ONLINE = "online"  # at every step
    CACHED = "cached"  # beforehand; what it said is stored, and serves every further run


class OnCorrupt(StrEnum):
    """What to do about a picture that cannot be decoded."""

    FAIL = "fail"
    SKIP = "skip"


class OnNonFinite(StrEnum):
    """What to do about a batch whose loss is not a finite number."""

    FAIL = "fail"
    SKIP = "skip"  # waits for the device at every step


BASELINE = "tuned_student"  # a further classifier, measured where it was asked for
TITLES = {
    "zero_shot_student": "zero-shot student",
    "zero_shot_teacher": "zero-shot teacher",
    "teacher": "tuned teacher",
    "student": "distilled student",
    BASELINE: "tuned student",
}
"""The classifiers that are measured, as tables call them."""
