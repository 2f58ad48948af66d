"""What "the same as the original" means, one function per part of the method.

Every check restarts from recorded values, so errors do not pile up: free
running, the original itself drifts by 3e-2 within six steps when its number of
threads changes. Differences are relative to the largest recorded value of a
tensor. The tolerances are three times what an independent implementation
reached (README.md).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from traces import Trace

from pd_core import class_vectors, distill, fit, pretrain
from pd_core.class_vectors import ClassVectors
from pd_core.models.clip import imagenet_templates
from pd_core.models.teacher import Teacher

TEACHER_LOSS = 3 * 4e-6
LOGITS = 3 * 3e-6
TEACHER_GRADIENT = 3 * 1.1e-5
ARITHMETIC = 3 * 1.2e-7  # SGD, momentum, learning rate, Gaussian averaging
DISTILLATION_LOSS = 3 * 1e-6
DISTILLATION_LOSS_WIDE = 3 * 3.4e-5
DISTILLATION_GRADIENT = 3 * 2.4e-5
DISTILLATION_GRADIENT_WIDE = 3 * 3.5e-4
BATCH_NORM = 3 * 1e-6
EVALUATION = 3 * 5e-7
CLASS_VECTORS = 3 * 1.3e-6

# Batch norm takes away what a bias before it adds, so its gradient is rounding noise.
ZERO_GRADIENT = "projector.0.bias"


@dataclass(frozen=True)
class Difference:
    """How far a value of ours is from the recorded one."""

    part: str
    name: str
    size: float
    allowed: float


class Differences:
    """Collects differences; nothing is asserted until `verify`."""

    def __init__(self) -> None:
        self.all: list[Difference] = []

    def add(
        self, part: str, name: str, ours: Tensor | float, recorded: Tensor | float, allowed: float
    ) -> None:
        """Compare two values of the same shape, relative to the largest recorded number."""
        ours, recorded = torch.as_tensor(ours).detach(), torch.as_tensor(recorded)
        assert ours.shape == recorded.shape, f"{name}: {ours.shape} for {recorded.shape}"
        scale = float(recorded.double().abs().max())
        self._add(part, name, ours, recorded, scale or 1.0, allowed)

    def add_absolute(
        self, part: str, name: str, ours: Tensor, recorded: Tensor, scale: float, allowed: float
    ) -> None:
        """Compare two values, relative to a scale from elsewhere."""
        self._add(part, name, ours.detach(), recorded, scale, allowed)

    def verify(self) -> None:
        """Fail if anything differs by more than is allowed."""
        assert self.all, "nothing was compared"
        wrong = [d for d in self.all if not d.size <= d.allowed]
        lines = [f"{d.part} {d.name}: {d.size:.2e} > {d.allowed:.2e}" for d in wrong]
        assert not wrong, "\n".join(lines)

    def _add(
        self, part: str, name: str, ours: Tensor, recorded: Tensor, scale: float, allowed: float
    ) -> None:
        size = float((ours.double() - recorded.double()).abs().max()) / scale
        self.all.append(Difference(part, name, size, allowed))


Check = Callable[[Trace], Differences]


def tokens(trace: Trace) -> Differences:
    """Texts and token ids, exactly."""
    found = Differences()
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
        found.add("tokens", stage, padded, recorded, allowed=0)
    return found


def initial_prompts(trace: Trace) -> Differences:
    """Depths are clipped, and the first text prompts start as words if there are enough."""
    found = Differences()
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
    for name, value in teacher.state_dict().items():
        assert value.shape == recorded[name].shape, name
    if text_length <= 4:
        words, same = teacher.state_dict(), "text_prompts.tokens"
        found.add("initial prompts", same, words[same][0], recorded[same][0], allowed=0)
    else:
        found.add("initial prompts", "shapes", 0.0, 0.0, allowed=0)
    return found


def frozen_text(trace: Trace) -> Differences:
    """Frozen text features over 60 templates, before and after they are normalised."""
    found = Differences()
    ours = _frozen_text(trace)
    found.add("frozen text", "mean", ours, trace.tensors["teacher/fixed_embeddings"], LOGITS)
    recorded = trace.tensors["teacher/step1/fixed_embeddings_normalized"]
    found.add("frozen text", "unit", F.normalize(ours, dim=-1), recorded, LOGITS)
    return found


def teacher_steps(trace: Trace) -> Differences:
    """Loss terms, features, logits and gradients of every step of teacher tuning."""
    found = Differences()
    frozen = F.normalize(_frozen_text(trace), dim=-1)
    names = trace.info["teacher_classnames"]
    for number in trace.teacher_steps:
        start, info = f"teacher/step{number}/", trace.info["teacher_steps"][number - 1]
        teacher = trace.teacher(trace.before("teacher", number, "param"))
        step = pretrain.promptsrc_step(
            teacher,
            trace.tensors[start + "image"],
            trace.tensors[start + "label"],
            tokens=teacher.tokens(names),
            frozen_text=frozen,
        )
        for name, ours in {
            "logits": step.logits,
            "zs_logits": step.zero_shot_logits,
            "text_features": step.text_features,
            "image_features": step.image_features,
            "zs_image_features": step.frozen_image_features,
        }.items():
            found.add("teacher logits", start + name, ours, trace.tensors[start + name], LOGITS)
        for name, ours in {
            "total_loss": step.loss.total,
            "loss_ce": step.loss.cross_entropy,
            "loss_scl_text": step.loss.text,
            "loss_scl_image": step.loss.image,
            "loss_scl_logits": step.loss.logits,
        }.items():
            found.add("teacher loss", start + name, ours, info[name], TEACHER_LOSS)
        torch.autograd.backward(step.loss.total)
        for name, recorded in trace.teacher_values(start + "grad/").items():
            ours = _gradient(teacher, name)
            found.add("teacher gradient", start + name, ours, recorded, TEACHER_GRADIENT)
    return found


def learning_rates(trace: Trace) -> Differences:
    """The rate of every step of both stages."""
    found = Differences()
    for stage, peak in (("teacher_steps", "t_lr"), ("kd_steps", "k_lr")):
        for info in trace.info[stage]:
            ours = _rate(trace, info["epoch"], trace.info["config"][peak])
            found.add("learning rate", f"{stage} {info['step']}", ours, info["lr"], ARITHMETIC)
    return found


def optimiser(trace: Trace) -> Differences:
    """Parameters and momentum after every step, from recorded gradients."""
    found = Differences()
    for number in trace.teacher_steps:
        teacher = trace.teacher(trace.before("teacher", number, "param"))
        info, peak = trace.info["teacher_steps"][number - 1], trace.info["config"]["t_lr"]
        _check_update(found, trace, teacher, "teacher", number, info["epoch"], peak)
    for number in trace.student_steps:
        student = trace.student_before(number)
        info, peak = trace.info["kd_steps"][number - 1], trace.info["config"]["k_lr"]
        _check_update(found, trace, student, "kd", number, info["epoch"], peak)
    return found


def averaging(trace: Trace) -> Differences:
    """The weights of the epochs, and the teacher that their sum makes."""
    found = Differences()
    epochs = trace.info["optim"]["max_epoch"]
    mean, deviation = trace.info["config"]["gpa"]
    weights = fit.gaussian_weights(epochs, mean=mean, deviation=deviation)
    recorded = trace.tensors["teacher/gpa_weights"]
    found.add("averaging", "weights", torch.tensor(weights).double(), recorded, ARITHMETIC)
    teacher = trace.teacher("teacher/init/")
    total = fit.WeightedSum(teacher, weights)
    for epoch in range(1, epochs + 1):
        last = max(s["step"] for s in trace.info["teacher_steps"] if s["epoch"] == epoch)
        total.add(epoch, trace.teacher(f"teacher/step{last}/param/"))
    total.copy_to(teacher)
    for name, value in trace.teacher_values("teacher/gpa/").items():
        found.add("averaging", name, teacher.state_dict()[name], value, ARITHMETIC)
    return found


def vectors(trace: Trace) -> Differences:
    """The class vectors of the final teacher, for all classes."""
    found = Differences()
    ours = class_vectors.build(trace.final_teacher(), trace.info["classnames"])
    recorded = trace.tensors["class_vectors"]
    found.add("class vectors", "all", ours.vectors, recorded, CLASS_VECTORS)
    return found


def distillation_steps(trace: Trace) -> Differences:
    """Losses, logits, gradients and batch norm of every step of distillation."""
    found = Differences()
    teacher, known = trace.final_teacher(), _recorded_vectors(trace)
    loss_allowed = DISTILLATION_LOSS_WIDE if trace.wide else DISTILLATION_LOSS
    logits_allowed = DISTILLATION_LOSS_WIDE if trace.wide else LOGITS
    allowed = DISTILLATION_GRADIENT_WIDE if trace.wide else DISTILLATION_GRADIENT
    for number in trace.student_steps:
        start, info = f"kd/step{number}/", trace.info["kd_steps"][number - 1]
        images = trace.tensors[start + "image"]
        student = trace.student_before(number)
        targets = trace.tensors[start + "teacher_logits"]
        ours = distill.teacher_logits(teacher, images, known)
        found.add("teacher logits", start, ours, targets, LOGITS)
        step = distill.distillation_step(
            student,
            images,
            targets,
            known,
            temperature=trace.info["temperature"],
            weight=trace.info["kd_weight"],
        )
        recorded = trace.tensors[start + "student_logits"]
        found.add("student logits", start, step.student_logits, recorded, logits_allowed)
        found.add("distillation loss", start, step.loss, info["total_loss"], loss_allowed)
        torch.autograd.backward(step.loss)
        gradients = trace.student_values(start + "grad/")
        largest = max(float(value.abs().max()) for value in gradients.values())
        for name, recorded in gradients.items():
            ours = _gradient(student, name)
            if name == ZERO_GRADIENT:
                found.add_absolute(
                    "distillation gradient", start + name, ours, recorded, largest, allowed
                )
            else:
                found.add("distillation gradient", start + name, ours, recorded, allowed)
        for name, recorded in trace.projector_values(start + "bn/").items():
            found.add("batch norm", start + name, student.state_dict()[name], recorded, BATCH_NORM)
    return found


def evaluation(trace: Trace) -> Differences:
    """Logits and predictions of the student and the teacher on every recorded image set."""
    found = Differences()
    known, teacher = _recorded_vectors(trace), trace.final_teacher()
    states = {"last": trace.student_steps[-1], "best_val": _last_step(trace)}
    with torch.no_grad():
        for key, result in trace.info["eval"].items():
            part, state = key.split("/")
            images = trace.tensors[f"eval/{part}/image"]
            first = len(known.names) - result["n_classes"] if part == "novel" else 0
            chosen = known.select(range(first, first + result["n_classes"]))
            student = trace.student_after(states[state])
            logits = chosen.logits(student(images), logit_scale=student.logit_scale)
            recorded = trace.tensors[f"eval/{key}/logits"]
            found.add("evaluation logits", key, logits, recorded, EVALUATION)
            predictions = trace.tensors[f"eval/{key}/pred"]
            found.add("predictions", key, logits.argmax(dim=1), predictions, allowed=0)
            right = logits.argmax(dim=1) == trace.tensors[f"eval/{part}/label"]
            accuracy = 100 * right.double().mean()
            found.add("accuracy", key, float(accuracy), result["accuracy"], ARITHMETIC)
            ours = distill.teacher_logits(teacher, images, known)
            recorded = trace.tensors[f"eval/{part}/teacher_logits_all"]
            found.add("teacher evaluation logits", part, ours, recorded, LOGITS)
    return found


ALL: dict[str, Check] = {
    check.__name__: check
    for check in (
        tokens,
        initial_prompts,
        frozen_text,
        teacher_steps,
        learning_rates,
        optimiser,
        averaging,
        vectors,
        distillation_steps,
        evaluation,
    )
}


def _frozen_text(trace: Trace) -> Tensor:
    return class_vectors.template_features(
        trace.teacher("teacher/init/"),
        trace.info["teacher_classnames"],
        imagenet_templates(trace.info["templates"]),
    )


def _recorded_vectors(trace: Trace) -> ClassVectors:
    scale = trace.teacher_towers.logit_scale
    return ClassVectors(
        tuple(trace.info["classnames"]), trace.tensors["class_vectors"], scale, "recorded"
    )


def _rate(trace: Trace, epoch: int, peak: float) -> float:
    optim = trace.info["optim"]
    return fit.learning_rate(
        epoch,
        epochs=optim["max_epoch"],
        peak=peak,
        warmup_epochs=optim["warmup_epoch"],
        warmup_lr=optim["warmup_cons_lr"],
    )


def _last_step(trace: Trace) -> int:
    """Return the last step of the epoch that the original chose as its best."""
    best = trace.info["kd_best_epoch"]
    return max(int(s["step"]) for s in trace.info["kd_steps"] if s["epoch"] == best)


def _gradient(module: nn.Module, name: str) -> Tensor:
    gradient = module.get_parameter(name).grad
    assert gradient is not None, f"{name} has no gradient"
    return gradient


def _check_update(
    found: Differences,
    trace: Trace,
    module: nn.Module,
    stage: str,
    number: int,
    epoch: int,
    peak: float,
) -> None:
    """Take one step of our optimiser with the recorded gradients and momentum."""
    values = trace.teacher_values if stage == "teacher" else trace.student_values
    optimizer = fit.make_optimizer(module.parameters(), lr=peak)
    fit.set_rate(optimizer, _rate(trace, epoch, peak))
    start = f"{stage}/step{number}/"
    momenta = values(f"{stage}/step{number - 1}/momentum/") if number > 1 else {}
    for name, value in values(start + "grad/").items():
        parameter = module.get_parameter(name)
        parameter.grad = value.clone()
        if name in momenta:
            optimizer.state[parameter]["momentum_buffer"] = momenta[name].clone()
    optimizer.step()
    for kind in ("param", "momentum"):
        for name, recorded in values(f"{start}{kind}/").items():
            parameter = module.get_parameter(name)
            ours = parameter if kind == "param" else optimizer.state[parameter]["momentum_buffer"]
            found.add("optimiser", f"{start}{kind}/{name}", ours, recorded, ARITHMETIC)
