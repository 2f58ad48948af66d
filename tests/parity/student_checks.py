"""Parity checks of the student: distillation and evaluation."""

from collections.abc import Callable

import torch
import trainings
from differences import (
    ARITHMETIC,
    BATCH_NORM,
    DISTILLATION_GRADIENT,
    DISTILLATION_GRADIENT_WIDE,
    DISTILLATION_LOSS,
    DISTILLATION_LOSS_WIDE,
    EVALUATION,
    LOGITS,
    Differences,
    Step,
    Values,
    gradients,
    shake,
    shake_parameters,
)
from teacher_checks import add_spread
from traces import DEEPER, INPUT, PROJECTOR, Trace

from pd_core.data.loading import splits
from pd_core.evaluation import evaluate
from pd_core.models import class_vectors as classifier
from pd_core.models.class_vectors import ClassVectors
from pd_core.models.student import Student

# The gradient of a bias before batch norm is rounding noise: it must be as good as zero.
ZERO_GRADIENT = "projector.0.bias"
ZERO_ALLOWED = DISTILLATION_GRADIENT_WIDE


def initial_student(trace: Trace) -> Differences:
    """Depth is clipped; prompts and projector start as the original's do."""
    differences = Differences()
    config = trace.info["config"]
    recorded = trace.student_values("kd/init/")
    student = Student.untrained(
        trace.student_towers,
        feature_width=trace.teacher_towers.joint_width,
        depth=config["s_depth"][0],
        length=config["s_ctx"][0],
    )
    ours = student.state_dict()
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in recorded.items()
    }
    trained = [DEEPER["image"].format(row) for row in range(1, len(ours["image_prompts.tokens"]))]
    trained += [INPUT["image"], *(PROJECTOR + name for name in _projector_parameters(student))]
    assert sorted(trained) == sorted(trace.info["kd_trainable"])
    add_spread(
        differences, "image", ours["image_prompts.tokens"], recorded["image_prompts.tokens"], 0.02
    )
    for layer in ("0", "3"):
        width = ours[f"projector.{layer}.weight"].shape[1]
        for name in (f"projector.{layer}.weight", f"projector.{layer}.bias"):
            # A uniform distribution up to 1 / sqrt(width), torch's own.
            add_spread(differences, name, ours[name], recorded[name], (3 * width) ** -0.5)
    for name, value in recorded.items():
        if name.startswith("projector.1."):
            differences.add("initial batch norm", name, ours[name], value, allowed=0)
    return differences


def distillation_steps(trace: Trace) -> Differences:
    """Losses, logits, gradients and batch norm of every step of distillation."""
    differences = Differences()
    teacher, vectors = trace.final_teacher(), recorded_vectors(trace)
    loss_allowed = DISTILLATION_LOSS_WIDE if trace.wide else DISTILLATION_LOSS
    logits_allowed = DISTILLATION_LOSS_WIDE if trace.wide else LOGITS
    allowed = DISTILLATION_GRADIENT_WIDE if trace.wide else DISTILLATION_GRADIENT
    for number in trace.student_steps:
        place, info = f"kd/step{number}/", trace.step("kd", number)
        if not trace.untrained_prompts:
            ours = trainings.live(teacher, vectors).logits(
                trainings.batch(trace.tensors[place + "image"])
            )
            recorded = trace.tensors[place + "teacher_logits"]
            differences.add("teacher logits", place, ours, recorded, LOGITS)
        step = Step(differences, place, _student_step(trace, number, vectors))
        recorded = trace.tensors[place + "student_logits"]
        step.compare("student logits", "student_logits", recorded, logits_allowed)
        step.compare("distillation loss", "total_loss", info["total_loss"], loss_allowed)
        slopes = trace.student_values(place + "grad/")
        largest = max(float(value.abs().max()) for value in slopes.values())
        for name, recorded in slopes.items():
            if name == ZERO_GRADIENT:
                step.compare("zero gradient", f"grad/{name}", recorded, ZERO_ALLOWED, scale=largest)
            else:
                step.compare("distillation gradient", f"grad/{name}", recorded, allowed)
        for name, recorded in trace.projector_values(place + "bn/").items():
            step.compare("batch norm", name, recorded, BATCH_NORM)
    return differences


def evaluation(trace: Trace) -> Differences:
    """Logits, predictions and accuracy on every recorded image set."""
    differences = Differences()
    vectors, teacher = recorded_vectors(trace), trace.final_teacher()
    classes = len(vectors.names)
    half = splits.base_count(classes)
    for part in sorted({key.split("/")[0] for key in trace.info["eval"]}):
        first, end = {"base": (0, half), "novel": (half, classes)}.get(part, (0, classes))
        images = trace.tensors[f"eval/{part}/image"]
        labels = trace.tensors[f"eval/{part}/label"] + first
        if not trace.untrained_prompts:
            ours = trainings.live(teacher, vectors).logits(trainings.batch(images))
            recorded = trace.tensors[f"eval/{part}/teacher_logits_all"]
            differences.add("teacher evaluation logits", part, ours, recorded, LOGITS)
        for state, step in _states(trace).items():
            key = f"{part}/{state}"
            if key not in trace.info["eval"]:
                continue
            classify = classifier.distilled(trace.student_after(step), vectors)
            with torch.no_grad():
                logits = classify.logits(images)
            recorded = trace.tensors[f"eval/{key}/logits"]
            differences.add("evaluation logits", key, logits[:, first:end], recorded, EVALUATION)
            first_novel = classes if (first, end) == (0, classes) else half
            best = evaluate.predictions(logits.numpy(), labels.numpy(), first_novel)
            recorded = trace.tensors[f"eval/{key}/pred"]
            differences.add(
                "predictions", key, torch.from_numpy(best[:, 0]) - first, recorded, allowed=0
            )
            right = evaluate.accuracy(best, labels.numpy(), first_novel)
            percent = right.novel if part == "novel" else right.base
            recorded_percent = trace.info["eval"][key]["accuracy"]
            differences.add("accuracy", key, percent, recorded_percent, ARITHMETIC)
    return differences


def recorded_vectors(trace: Trace) -> ClassVectors:
    """Return the class vectors of the original, so that each part starts from its numbers."""
    scale = trace.teacher_towers.logit_scale
    return ClassVectors(
        tuple(trace.info["classnames"]), trace.tensors["class_vectors"], scale, "recorded"
    )


def _student_step(trace: Trace, number: int, vectors: ClassVectors) -> Callable[[float], Values]:
    """Make what takes one step of distillation from the recorded state, with noise if asked to."""
    place = f"kd/step{number}/"

    def measure(noise: float) -> Values:
        student = trace.student_before(number)
        shake_parameters(student, noise)
        step = trainings.distillation_step(
            student,
            shake(trace.tensors[place + "image"], noise),
            trace.tensors[place + "teacher_logits"],
            vectors,
            temperature=trace.info["temperature"],
            kd_weight=trace.info["kd_weight"],
        )
        torch.autograd.backward(step.loss)
        return {
            "student_logits": step.student_logits,
            "total_loss": step.loss,
            **gradients(student),
            **dict(student.named_buffers()),
        }

    return measure


def _states(trace: Trace) -> dict[str, int]:
    """Return the steps after which the original evaluated: its last, and its best epoch's last."""
    last = max(row["epoch"] for row in trace.info["kd_steps"])
    epochs = {"last": last, "best_val": trace.info.get("kd_best_epoch")}
    ends = {name: trace.last_step("kd", epoch) for name, epoch in epochs.items() if epoch}
    return {name: end for name, end in ends.items() if end is not None}


def _projector_parameters(student: Student) -> list[str]:
    return [name for name, _ in student.projector.named_parameters()]
