"""Parity checks of the teacher and its class vectors."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
import trainings
from differences import (
    ARITHMETIC,
    CLASS_VECTORS,
    LOGITS,
    TEACHER_GRADIENT,
    TEACHER_LOSS,
    Differences,
    Step,
    Values,
    gradients,
    shake,
    shake_parameters,
)
from torch import Tensor
from traces import DEEPER, INPUT, Trace

from pd_core.models import class_vectors
from pd_core.models.clip import imagenet_templates
from pd_core.models.teacher import Teacher
from pd_core.training.loop import schedule
from pd_core.training.loop.schedule import WeightedSum

PHRASE = 4  # words of "a photo of a"; a longer context is random


def tokens(trace: Trace) -> Differences:
    """Texts and token ids, exactly."""
    differences = Differences()
    teacher = trace.teacher("teacher/init/")
    for stage, names, texts in (
        ("teacher", "teacher_classnames", "teacher_prompts"),
        ("kd", "classnames", "kd_prompts"),
    ):
        classes = trace.info[names]
        assert teacher.texts(classes) == trace.info[texts]
        recorded = trace.tensors[f"{stage}/tokenized_prompts"]
        ours = teacher.tokens(classes)
        padded = F.pad(ours, (0, recorded.shape[1] - ours.shape[1]))
        differences.add("tokens", stage, padded, recorded, allowed=0)
    return differences


def initial_prompts(trace: Trace) -> Differences:
    """Depths are clipped; the first text prompts start as words if there are enough of these."""
    differences = Differences()
    config = trace.info["config"]
    (image_depth, text_depth), (image_length, text_length) = config["t_depth"], config["t_ctx"]
    teacher = Teacher.untrained(
        trace.teacher_towers,
        text_depth=text_depth,
        text_length=text_length,
        image_depth=image_depth,
        image_length=image_length,
    )
    recorded = trace.teacher_values("teacher/init/")
    trained = []
    for branch, name in INPUT.items():
        ours = teacher.get_parameter(f"{branch}_prompts.tokens")
        original = recorded[f"{branch}_prompts.tokens"]
        assert ours.shape == original.shape, branch
        trained += [name, *(DEEPER[branch].format(row) for row in range(1, len(ours)))]
        first = 0
        if branch == "text" and text_length <= PHRASE:
            differences.add("initial prompts", "words", ours[0], original[0], allowed=0)
            first = 1
        add_spread(differences, f"{branch} prompts", ours[first:], original[first:], 0.02)
    assert sorted(trained) == sorted(trace.info["teacher_trainable"])
    return differences


def add_spread(
    differences: Differences, name: str, ours: Tensor, recorded: Tensor, deviation: float
) -> None:
    """Compare random numbers: ours and the recorded ones have the same spread around zero."""
    if not ours.numel():
        return
    expected = torch.tensor(deviation)
    chance = 5 / (2 * ours.numel()) ** 0.5  # five standard errors of a normal distribution
    for whose, values in (("ours", ours), ("recorded", recorded)):
        spread = values.detach().square().mean().sqrt()
        differences.add("initial prompts", f"{name}, {whose}", spread, expected, chance)


def frozen_text(trace: Trace) -> Differences:
    """Frozen text features over 60 templates, before and after they are normalised."""
    differences = Differences()
    ours = _frozen_text(trace)
    differences.add("frozen text", "mean", ours, trace.tensors["teacher/fixed_embeddings"], LOGITS)
    recorded = trace.tensors["teacher/step1/fixed_embeddings_normalized"]
    differences.add("frozen text", "unit", F.normalize(ours, dim=-1), recorded, LOGITS)
    return differences


def teacher_steps(trace: Trace) -> Differences:
    """Loss terms, features, logits and gradients of every step of teacher tuning."""
    differences = Differences()
    frozen = F.normalize(_frozen_text(trace), dim=-1)
    for number in trace.teacher_steps:
        place, info = f"teacher/step{number}/", trace.step("teacher", number)
        step = Step(differences, place, _teacher_step(trace, number, frozen))
        for name in (
            "logits", "zs_logits", "text_features", "image_features", "zs_image_features",
        ):  # fmt: skip
            step.compare("teacher logits", name, trace.tensors[place + name], LOGITS)
        for name in ("total_loss", "loss_ce", "loss_scl_text", "loss_scl_image", "loss_scl_logits"):
            step.compare("teacher loss", name, info[name], TEACHER_LOSS)
        for name, recorded in trace.teacher_values(place + "grad/").items():
            step.compare("teacher gradient", f"grad/{name}", recorded, TEACHER_GRADIENT)
    return differences


def averaging(trace: Trace) -> Differences:
    """The weights of the epochs, and the teacher that their sum makes."""
    differences = Differences()
    epochs = trace.info["optim"]["max_epoch"]
    mean, deviation = trace.info["config"]["gpa"]
    weights = schedule.gaussian_weights(epochs, mean=mean, deviation=deviation)
    recorded = trace.tensors["teacher/gpa_weights"]
    differences.add("averaging", "weights", torch.tensor(weights).double(), recorded, ARITHMETIC)
    ends = [trace.last_step("teacher", epoch) for epoch in range(1, epochs + 1)]
    if None in ends:  # only the first steps of a long run were recorded
        return differences
    teacher = trace.teacher("teacher/init/")
    total = WeightedSum(teacher, weights)
    for epoch, end in enumerate(ends, start=1):
        total.add(epoch, trace.teacher(f"teacher/step{end}/param/"))
    total.copy_to(teacher)
    for name, value in trace.teacher_values("teacher/gpa/").items():
        differences.add("averaging", name, teacher.state_dict()[name], value, ARITHMETIC)
    return differences


def vectors(trace: Trace) -> Differences:
    """The class vectors of the final teacher, for all classes."""
    differences = Differences()
    ours = class_vectors.build(trace.final_teacher(), trace.info["classnames"])
    recorded = trace.tensors["class_vectors"]
    differences.add("class vectors", "all", ours.vectors, recorded, CLASS_VECTORS)
    return differences


def _teacher_step(trace: Trace, number: int, frozen: Tensor) -> Callable[[float], Values]:
    """Make what takes one step of PromptSRC from the recorded state, with noise if asked to."""
    place = f"teacher/step{number}/"
    names = trace.info["teacher_classnames"]

    def measure(noise: float) -> Values:
        teacher = trace.teacher(trace.before("teacher", number, "param"))
        shake_parameters(teacher, noise)
        step = trainings.promptsrc_step(
            teacher,
            shake(trace.tensors[place + "image"], noise),
            trace.tensors[place + "label"],
            tokens=teacher.tokens(names),
            frozen_text=frozen,
        )
        torch.autograd.backward(step.loss.total)
        return {
            "logits": step.logits,
            "zs_logits": step.zero_shot_logits,
            "text_features": step.text_features,
            "image_features": step.image_features,
            "zs_image_features": step.frozen_image_features,
            "total_loss": step.loss.total,
            "loss_ce": step.loss.cross_entropy,
            "loss_scl_text": step.loss.text,
            "loss_scl_image": step.loss.image,
            "loss_scl_logits": step.loss.logits,
            **gradients(teacher),
        }

    return measure


def _frozen_text(trace: Trace) -> Tensor:
    return class_vectors.template_features(
        trace.teacher("teacher/init/"),
        trace.info["teacher_classnames"],
        imagenet_templates(trace.info["templates"]),
    )
