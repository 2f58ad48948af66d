"""Formats and precisions of exported students."""

from enum import StrEnum


class ExportFormat(StrEnum):
    """File format of an exported student; each has its runtime."""

    ONNX = "onnx"
    TORCHSCRIPT = "torchscript"
    OPENVINO = "openvino"  # extra `openvino`


class ExportPrecision(StrEnum):
    """Precision of an exported student's weights and matrix products."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"  # static quantisation, calibrated with training images
