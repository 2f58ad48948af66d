"""Training: the loop, prompt tuning of the teacher, distillation of the student."""
